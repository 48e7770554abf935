"""Decodes DICOM files with pydicom, `pip install medtl[dicom]`.

Grey values go through the modality LUT (so that CT is in Hounsfield units) and then through
`data.window`, else the first VOI LUT or window of the file, else all values of its unsigned bits.
MONOCHROME1 is inverted, palettes and YBR become RGB. Compressed files need pylibjpeg, which the
extra brings.

Refuses files that name a patient, and files with BurnedInAnnotation=YES, unless they are allowed.
That is a guard against accidents, not a check that a file is de-identified: burned-in text, private
tags and free text are not looked at.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from medtl.data.values import FileRules, UnreadableImageError, Values

# Of PS3.15, table E.1-1, those that identify a person without another list.
IDENTIFYING = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientBirthName",
    "PatientMotherBirthName",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "OtherPatientIDs",
    "OtherPatientNames",
)
_PREAMBLE = 128


def is_dicom(data: bytes) -> bool:
    """Return whether the bytes are a DICOM file, with its preamble or without."""
    bare = data[:2] in (b"\x02\0", b"\x08\0") and data[3:4] == b"\0"
    return data[_PREAMBLE : _PREAMBLE + 4] == b"DICM" or bare


def decode(data: bytes, *, rules: FileRules, frame: int | None = None) -> Image.Image | Values:
    """Decode a frame of a DICOM file.

    Args:
      data: the file's bytes.
      rules: what is accepted; with a window, the file's own VOI LUT is not applied.
      frame: counted from 0; None: the file has one.

    Raises:
      UnreadableImageError: with the reason.
      Exception: whatever pydicom raises on damaged files.
    """
    try:
        import pydicom
        from pydicom import pixels
    except ImportError:
        raise UnreadableImageError(
            'it is a DICOM file, which pydicom reads: pip install "medtl[dicom]"'
        ) from None
    header = pydicom.dcmread(io.BytesIO(data), force=True)
    _check(header, rules)
    n = int(header.get("NumberOfFrames") or 1)
    if frame is None and n > 1:
        raise UnreadableImageError(f"it has {n} frames; name one as FILE#0")
    if frame is not None and frame >= n:
        raise UnreadableImageError(f"it has no frame {frame}, but 0 to {n - 1}")
    try:
        stored = pixels.pixel_array(header, index=frame or 0)
    except BaseException as error:  # that of decoders in Rust is no Exception
        if type(error).__name__ != "PanicException":
            raise
        raise UnreadableImageError("its compressed pixels are damaged") from None
    _flatten(header, frame or 0)
    kind = header.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        stored = pixels.apply_color_lut(stored, header)
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        return _color(stored, kind, header)
    return _grey(stored, header, rules)


def _check(header: Any, rules: FileRules) -> None:
    if "PixelData" not in header:
        raise UnreadableImageError("it is a DICOM file without pixels")
    pixels = int(header.get("Rows") or 0) * int(header.get("Columns") or 0)
    if pixels > rules.max_pixels:
        raise UnreadableImageError(
            f"it has {pixels} pixels; config.data.max_pixels allows {rules.max_pixels}"
        )
    is_anonymous = str(header.get("PatientIdentityRemoved", "")).upper() == "YES"
    tags = [name for name in IDENTIFYING if str(header.get(name, "") or "").strip("^ ")]
    if tags and not is_anonymous and "identifying_tags" not in rules.allow:
        raise UnreadableImageError(
            f"its tags {', '.join(tags)} may identify a patient; remove them, or add "
            "'identifying_tags' to config.data.allow"
        )
    is_burned_in = str(header.get("BurnedInAnnotation", "")).upper() == "YES"
    if is_burned_in and "burned_in_annotation" not in rules.allow:
        raise UnreadableImageError(
            "BurnedInAnnotation is YES: text in the image may identify a patient; remove it, or "
            "add 'burned_in_annotation' to config.data.allow"
        )


def _flatten(header: Any, frame: int) -> None:
    """Copy what an enhanced multi-frame file says of a frame's values to where others say it."""
    shared = header.get("SharedFunctionalGroupsSequence") or ()
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or ()
    for group in (*shared[:1], *per_frame[frame : frame + 1]):
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in (group.get(name) or ())[:1]:
                header.update({element.tag: element for element in item})


def _color(stored: np.ndarray, kind: str, header: Any) -> Image.Image | Values:
    if stored.ndim != 3 or stored.shape[-1] < 3:
        raise UnreadableImageError(f"it is a DICOM file of {kind}, which is not read")
    color, bits = stored[..., :3], stored.dtype.itemsize * 8
    if bits == 8:
        return Image.fromarray(np.ascontiguousarray(color))
    if kind != "PALETTE COLOR":  # its table gives its own range: of 16 bits, as PS3.3 C.7.6.3.1.5
        bits = int(header.BitsStored)
    return Values(color, f"{bits}-bit {kind} DICOM", (0, 2**bits - 1))


def _grey(stored: np.ndarray, header: Any, rules: FileRules) -> Image.Image | Values:
    from pydicom import pixels

    values = pixels.apply_modality_lut(stored, header)
    bits, is_signed = int(header.BitsStored), bool(header.PixelRepresentation)
    is_plain = bits <= 8 and not is_signed and np.array_equal(values, stored)
    is_inverted = header.PhotometricInterpretation == "MONOCHROME1"
    words = f"{'signed ' * is_signed}{bits}-bit {header.PhotometricInterpretation} DICOM"
    low, high = _range(header, bits, is_signed)
    if rules.window and not is_plain:
        return Values(values, words, is_inverted=is_inverted)
    if "VOILUTSequence" in header:
        low, high = 0, 2 ** _lut_bits(header.VOILUTSequence[0]) - 1
    elif any(header.get(name) in (None, "") for name in ("WindowCenter", "WindowWidth")):
        return Values(values, words, () if is_signed else (low, high), is_inverted)
    shown = Values(pixels.apply_voi_lut(values, header), words, (low, high), is_inverted)
    return Image.fromarray(shown.windowed())


def _range(header: Any, bits: int, is_signed: bool) -> tuple[float, float]:
    """Return the least and greatest possible value behind the modality LUT: PS3.3 C.11.2.1.2."""
    if header.get("ModalityLUTSequence"):
        return 0, 2 ** _lut_bits(header.ModalityLUTSequence[0]) - 1
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    if slope is None or intercept is None:
        return ends
    low, high = sorted(float(end * slope + intercept) for end in ends)
    return low, high


def _lut_bits(item: Any) -> int:
    return int(item.LUTDescriptor[2])
