"""DICOM against pydicom's own transforms and the standard's formulas, and NIfTI slices."""

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medtl import data
from medtl.config import dataset
from medtl.data import images
from medtl.data.dicom import IDENTIFYING
from medtl.data.values import FileRules, UnreadableImageError

ALLOWED = ("identifying_tags", "burned_in_annotation")
RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def decode(content, *, size=8, channels=1, frame=None, window=(), allow=()):
    rules = FileRules(window=window, allow=allow)
    options = {"size": size, "channels": channels, "resize": "squash"}
    return images.decode(content, rules=rules, frame=frame, **options)


@pytest.fixture
def dicom():
    """dicom(pixels, **elements): the bytes of a DICOM file of uint16 or int16[H, W]."""
    pydicom = pytest.importorskip("pydicom")

    def dicom(pixels, **elements):
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        file = pydicom.Dataset()
        file.file_meta = meta
        file.SOPClassUID, file.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2", "1.2.3"
        file.PhotometricInterpretation, file.SamplesPerPixel = "MONOCHROME2", 1
        file.Rows, file.Columns = pixels.shape[-2:]
        file.BitsAllocated, file.BitsStored, file.HighBit = 16, 12, 11
        file.PixelRepresentation = int(pixels.dtype.kind == "i")
        if pixels.ndim == 3:
            file.NumberOfFrames = len(pixels)
        for name, value in elements.items():
            setattr(file, name, value)
        file.PixelData = pixels.tobytes()
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, file, enforce_file_format=True)
        return buffer.getvalue()

    return dicom


def test_rescaled_values_go_through_the_window_of_the_config_else_of_the_file(dicom):
    stored = np.rint(RAMP * 2000).astype(np.uint16)
    ct = {"RescaleSlope": 2, "RescaleIntercept": -1024}
    units = stored * 2.0 - 1024
    shown = decode(dicom(stored, **ct), window=(-1000, 400))[..., 0]
    expected = 255 * np.clip((units + 1000) / 1400, 0, 1)
    np.testing.assert_allclose(shown, expected, atol=0.51)
    # PS3.3 C.11.2.1.2.1, the linear window.
    shown = decode(dicom(stored, **ct, WindowCenter=40, WindowWidth=400))[..., 0]
    expected = 255 * np.clip((units - 39.5) / 399 + 0.5, 0, 1)
    np.testing.assert_allclose(shown, expected, atol=0.51)
    shown = decode(dicom(stored))[..., 0]  # all values of 12 unsigned bits
    np.testing.assert_allclose(shown, stored * (255 / 4095), atol=0.51)


def test_monochrome1_is_inverted_and_signed_values_need_a_window(dicom):
    stored = np.rint(RAMP * 4095).astype(np.uint16)
    content = dicom(stored, PhotometricInterpretation="MONOCHROME1")
    for window in ((), (0, 4095)):
        shown = decode(content, window=window)[..., 0]
        np.testing.assert_allclose(shown, 255 - stored * (255 / 4095), atol=0.51)
    signed = dicom((stored.astype(np.int16) - 2048) // 2)
    with pytest.raises(UnreadableImageError, match="signed 12-bit MONOCHROME2 DICOM .* no window"):
        decode(signed)
    shown = decode(signed, window=(-1024, 1023))[..., 0]
    np.testing.assert_allclose(shown, RAMP * 255, atol=1)


def test_a_patients_name_and_burned_in_text_are_refused_unless_allowed(dicom):
    stored = np.zeros((8, 8), np.uint16)
    for name in IDENTIFYING:
        value = "19700101" if name == "PatientBirthDate" else "x"
        with pytest.raises(UnreadableImageError, match=f"its tags {name} may identify"):
            decode(dicom(stored, **{name: value}))
        decode(dicom(stored, **{name: value}), allow=("identifying_tags",))
        decode(dicom(stored, **{name: value}, PatientIdentityRemoved="YES"))
    burned = dicom(stored, BurnedInAnnotation="YES")
    with pytest.raises(UnreadableImageError, match="BurnedInAnnotation is YES"):
        decode(burned, allow=("identifying_tags",))
    decode(burned, allow=("burned_in_annotation",))


def test_frames_of_one_file_are_rows_of_a_manifest(dicom, tmp_path):
    frames = np.random.default_rng(0).integers(0, 4096, (6, 8, 8)).astype(np.uint16)
    (tmp_path / "scan.dcm").write_bytes(dicom(frames))
    rows = "".join(f"scan.dcm#{i},{'ab'[i % 2]},{'train' if i < 4 else 'val'}\n" for i in range(6))
    (tmp_path / "manifest.csv").write_text("image_path,diagnosis,split\n" + rows)
    spec = dataset(path=str(tmp_path / "manifest.csv"))
    options = {"image_size": 8, "channels": 1, "resize": "squash", "cache_dir": str(tmp_path)}
    for cache in ("memory", "disk", "stream"):
        image = data.load(spec, cache=cache, key="x", **options).image
        shown = np.stack([image[i][..., 0] for i in range(6)])
        np.testing.assert_allclose(shown, frames * (255 / 4095), atol=0.51)
    with pytest.raises(UnreadableImageError, match="6 frames; name one as FILE#0"):
        decode((tmp_path / "scan.dcm").read_bytes())
    with pytest.raises(UnreadableImageError, match="no frame 6, but 0 to 5"):
        decode((tmp_path / "scan.dcm").read_bytes(), frame=6)


# The rest of the files that pydicom brings are compressed, of several frames, or broken.
BUNDLED = (
    "MR_small.dcm",
    "MR_small_RLE.dcm",
    "examples_jpeg2k.dcm",
    "examples_overlay.dcm",
    "examples_palette.dcm",
    "examples_rgb_color.dcm",
    "693_J2KI.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "MR_small_jp2klossless.dcm",
    "JPEGLSNearLossless_16.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "SC_ybr_full_422_uncompressed.dcm",
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BUNDLED)
def test_files_of_pydicom_decode_to_what_its_luts_give(name):
    pydicom = pytest.importorskip("pydicom")
    from pydicom import pixels

    folder = Path(pydicom.__file__).parent / "data"
    path = next(iter(folder.rglob(name)), None)
    if path is None:
        pytest.skip(f"pydicom brings no {name}")
    header = pydicom.dcmread(path)
    channels = 1 if header.PhotometricInterpretation.startswith("MONO") else 3
    stored = pixels.pixel_array(header)
    if header.PhotometricInterpretation == "PALETTE COLOR":
        stored = pixels.apply_color_lut(stored, header)
        expected = stored[..., :3] * (255 / (2 ** (8 * stored.dtype.itemsize) - 1))
    elif channels == 3:
        expected = stored
    else:
        units = pixels.apply_voi_lut(pixels.apply_modality_lut(stored, header), header)
        ends = np.array([0, 2**header.BitsStored - 1])
        if header.PixelRepresentation:
            ends = ends - 2 ** (header.BitsStored - 1)
        if "RescaleSlope" in header:
            ends = ends * header.RescaleSlope + header.RescaleIntercept
        for sequence in ("ModalityLUTSequence", "VOILUTSequence"):
            if sequence in header:
                ends = np.array([0, 2 ** header[sequence][0].LUTDescriptor[2] - 1])
        if "WindowCenter" not in header and "VOILUTSequence" not in header:
            assert not header.PixelRepresentation
        expected = 255 * (units.astype(float) - ends[0]) / (ends[1] - ends[0])
    size = header.Rows if header.Rows == header.Columns else 64
    shown = decode(path.read_bytes(), size=size, channels=channels, allow=ALLOWED)
    picture = Image.fromarray(np.rint(np.clip(expected, 0, 255)).astype(np.uint8))
    resized = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(shown.squeeze(), resized.squeeze(), atol=1)
    assert shown.std() > 5


@pytest.fixture
def volume():
    """A volume float[L, P, S], whose axes run to the left, the back and the head."""
    return np.random.default_rng(0).integers(-1000, 1000, (4, 5, 6)).astype(np.int16)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SPL", "AIR"])
def test_nifti_slices_are_axial_from_the_feet_in_any_orientation(codes, volume):
    nibabel = pytest.importorskip("nibabel")
    from nibabel import orientations as o

    lps = nibabel.Nifti1Image(volume, np.diag([-1, -1, 1, 1]))
    change = o.ornt_transform(o.axcodes2ornt("LPS"), o.axcodes2ornt(codes))
    stored = lps.as_reoriented(change)
    assert "".join(nibabel.aff2axcodes(stored.affine)) == codes
    for content in (stored.to_bytes(), gzip.compress(stored.to_bytes())):
        for k in range(6):
            shown = decode(content, size=40, frame=k, window=(-1000, 1000))[..., 0]
            plane = np.rint(255 * (volume[:, :, k].T.astype(float) + 1000) / 2000)
            picture = Image.fromarray(plane.astype(np.uint8))
            resized = picture.resize((40, 40), Image.Resampling.BILINEAR)
            np.testing.assert_allclose(shown, np.asarray(resized), atol=1)


def test_a_nifti_needs_a_slice_and_a_window(volume):
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(volume, np.eye(4))
    with pytest.raises(UnreadableImageError, match="it has 6 slices; name one as FILE#0"):
        decode(image.to_bytes(), window=(0, 1))
    with pytest.raises(UnreadableImageError, match="it has no slice 6, but 0 to 5"):
        decode(image.to_bytes(), window=(0, 1), frame=6)
    with pytest.raises(UnreadableImageError, match="int16 NIfTI with values .* states no window"):
        decode(image.to_bytes(), frame=0)
    image.header["cal_min"], image.header["cal_max"] = -1000, 1000
    with_range = decode(image.to_bytes(), frame=0)
    np.testing.assert_array_equal(with_range, decode(image.to_bytes(), frame=0, window=(-1e3, 1e3)))
    with pytest.raises(UnreadableImageError):
        decode(image.to_bytes()[:360], frame=0, window=(0, 1))
    series = nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), np.eye(4))
    with pytest.raises(UnreadableImageError, match=r"shape \[4, 4, 4, 2\]; split it"):
        decode(series.to_bytes(), frame=0, window=(0, 1))


@pytest.mark.parametrize(("module", "content"), [("pydicom", "dicom"), ("nibabel", "nifti")])
def test_without_the_package_the_extra_is_named(module, content, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    data_ = {"dicom": bytes(128) + b"DICM", "nifti": bytes(344) + b"n+1\0" + bytes(200)}[content]
    with pytest.raises(UnreadableImageError, match=rf'pip install "medtl\[{content}\]"'):
        decode(data_)


def test_a_decoder_that_panics_is_a_damaged_file(dicom, monkeypatch):
    pixels = pytest.importorskip("pydicom.pixels")

    class PanicException(BaseException):
        """What pyo3 raises where Rust panics, as pylibjpeg-rle does on damaged segments."""

    def panics(*args, **kwargs):
        raise PanicException("index out of bounds")

    content = dicom(np.zeros((8, 8), np.uint16))
    monkeypatch.setattr(pixels, "pixel_array", panics)
    with pytest.raises(UnreadableImageError, match="its compressed pixels are damaged"):
        decode(content)
