"""Writes TIFFs of any bit depth, sample format and photometric interpretation."""

import struct
import zlib

import numpy as np


def tiff(pixels, *, photometric=None, order="<", packed=False):
    """Return the bytes of a TIFF of an array [H, W] or [H, W, C] in one strip; see TIFF 6.0."""
    pixels = np.atleast_3d(pixels)
    height, width, channels = pixels.shape
    if photometric is None:
        photometric = 2 if channels > 2 else 1
    strip = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    strip = zlib.compress(strip) if packed else strip
    n_tags, bits = 10 + (channels > 3), pixels.dtype.itemsize * 8
    data_at = 8 + 2 + 12 * n_tags + 4

    def short(tag, *values):
        if len(values) <= 2:
            body = b"".join(struct.pack(order + "H", v) for v in values).ljust(4, b"\0")
        else:
            body = struct.pack(order + "I", lists[tag])
        return struct.pack(order + "HHI", tag, 3, len(values)) + body

    def long(tag, value):
        return struct.pack(order + "HHII", tag, 4, 1, value)

    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    lists = {258: data_at, 339: data_at + 2 * channels}
    strip_at = data_at + 4 * channels
    tags = [
        long(256, width),
        long(257, height),
        short(258, *[bits] * channels),
        short(259, 8 if packed else 1),
        short(262, photometric),
        long(273, strip_at),
        short(277, channels),
        long(278, height),
        long(279, len(strip)),
        *([short(338, 2)] if channels > 3 else []),
        short(339, *[kind] * channels),
    ]
    magic = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(order + "H", len(tags)) + b"".join(tags) + bytes(4)
    values = struct.pack(order + f"{2 * channels}H", *[bits] * channels, *[kind] * channels)
    return magic + struct.pack(order + "I", 8) + directory + values + strip
