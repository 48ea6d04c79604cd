from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openjpeg.utils import encode_array
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

from service.dicom.errors import UnreadableDicom
from service.dicom.read import read_slices
from service.dicom.settings import DicomLimits

LIMITS = DicomLimits()
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def slice_12_bits(seed: int = 0) -> np.ndarray:
    """Return a bright, softly varying ellipse on black, 12 bits, in 16."""
    noise = np.random.default_rng(seed).integers(0, 400, (60, 48))
    shape = np.zeros((60, 48), np.uint8)
    cv2.ellipse(shape, (24, 30), (16, 22), 0, 0, 360, 1, -1)
    return (shape * (2000 + noise)).astype(np.uint16)


def make_dataset(stored: np.ndarray, syntax: uid.UID = uid.ExplicitVRLittleEndian, **elements: Any) -> Dataset:
    """Return an MR image; `elements` replace or add to its header, None deletes."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = uid.MRImageStorage
    dataset.SOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    dataset.Modality = "MR"
    dataset.PatientName = "Secret^Name"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.BitsAllocated = stored.itemsize * 8
    dataset.BitsStored = 8 if stored.itemsize == 1 else 12
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset["PixelData"] = pydicom.DataElement("PixelData", "OW", stored.tobytes())
    for keyword, value in elements.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    return dataset


def to_bytes(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def read_one(stored: np.ndarray, **elements: Any) -> np.ndarray:
    return read_slices(to_bytes(make_dataset(stored, **elements)), LIMITS).grays[0]


def table(first: int, entries: list[int], bits: int = 16, says: int | None = None) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [says or len(entries), first, bits])
    item.add_new("LUTData", "OW", np.array(entries, "<u2").tobytes())
    return item


# ---- windows ----


@pytest.mark.parametrize(
    ("centre", "width", "function", "expected"),
    [
        (2048, 4096, None, {0: 0, 2047: 127, 2048: 128, 4095: 255}),
        (1000, 1, "LINEAR", {999: 0, 1000: 255}),
        (1000, 201, "LINEAR", {899: 0, 1099: 254, 1100: 255, 1000: 128}),
        (1000, 200, "LINEAR_EXACT", {900: 0, 1000: 128, 1050: 191, 1100: 255}),
        (1000, 200, "SIGMOID", {1000: 128, 1050: 186, 0: 0, 4095: 255}),
        ([1000, 5], [200, 3], "LINEAR_EXACT", {900: 0, 1100: 255}),
    ],
)
def test_windows_are_those_of_the_standard(
    centre: Any, width: Any, function: str | None, expected: dict[int, int]
) -> None:
    more = {} if function is None else {"VOILUTFunction": function}
    gray = read_one(RAMP, WindowCenter=centre, WindowWidth=width, **more)
    assert {value: int(gray[value // 64, value % 64]) for value in expected} == expected


@settings(max_examples=30, deadline=None)
@given(
    centre=st.integers(-5000, 9000),
    width=st.integers(2, 9000),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    slope=st.floats(0.125, 8),
    inverted=st.booleans(),
)
def test_order_of_values_is_order_of_grey(centre: int, width: int, function: str, slope: float, inverted: bool) -> None:
    kind = "MONOCHROME1" if inverted else "MONOCHROME2"
    more = {"RescaleSlope": round(slope, 3), "RescaleIntercept": -1000, "PhotometricInterpretation": kind}
    gray = read_one(RAMP, WindowCenter=centre, WindowWidth=width, VOILUTFunction=function, **more)
    steps = np.diff(gray.ravel().astype(int))
    assert (steps <= 0).all() if inverted else (steps >= 0).all()


def test_monochrome1_is_the_negative() -> None:
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    positive = read_one(RAMP, **window)
    assert np.array_equal(read_one(RAMP, PhotometricInterpretation="MONOCHROME1", **window), 255 - positive)


def test_rescale_shifts_the_window() -> None:
    plain = read_one(RAMP, WindowCenter=1000, WindowWidth=400)
    rescaled = read_one(RAMP, WindowCenter=1500, WindowWidth=800, RescaleSlope=2, RescaleIntercept=-500)
    assert np.abs(plain.astype(int) - rescaled).max() <= 1


def test_tables_replace_rescale_and_window() -> None:
    stored = np.repeat(np.arange(16, dtype=np.uint16), 16).reshape(16, 16)
    modality = table(0, [4095 - 256 * index for index in range(16)])
    assert np.array_equal(
        read_one(stored, ModalityLUTSequence=Sequence([modality]), WindowCenter=2048, WindowWidth=4096)[:, 0],
        np.rint((4095 - 256 * np.arange(16)) / 4095 * 255),
    )
    interest = table(4, [0, 100, 255], bits=8)
    gray = read_one(stored, VOILUTSequence=Sequence([interest]), WindowCenter=9, WindowWidth=2)
    assert gray[[0, 4, 5, 6, 15], 0].tolist() == [0, 0, 100, 255, 255]


def test_signed_values_and_foreign_high_bits() -> None:
    values = np.arange(-2048, 2048, dtype=np.int16).reshape(64, 64)
    gray = read_one(values, WindowCenter=0, WindowWidth=4096)
    assert (gray[0, 0], gray[32, 0], gray[-1, -1]) == (0, 128, 255)
    with_overlay = (values & 0x0FFF).astype(np.int16) | np.int16(0x7000)
    assert np.array_equal(read_one(with_overlay, WindowCenter=0, WindowWidth=4096), gray)


def test_without_a_window_percentiles_of_what_is_no_padding() -> None:
    stored = slice_12_bits()
    stored[0, 0], stored[30, 24] = 4095, 0
    stored[:4, :] = 3999
    slices = read_slices(to_bytes(make_dataset(stored, PixelPaddingValue=3999)), LIMITS)
    gray = slices.grays[0]
    low, high = np.percentile(stored[stored != 3999], [0.5, 99.5])
    expected = np.clip((stored - low) / (high - low), 0, 1) * 255
    shown = stored != 3999
    assert np.abs(gray[shown] - expected[shown]).max() <= 0.51
    assert not gray[~shown].any()
    assert any("no window" in remark for remark in slices.remarks)


def test_eight_bits_without_a_window_are_shown_as_they_are() -> None:
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(read_one(stored), stored)


def test_an_unusable_window_is_told() -> None:
    slices = read_slices(to_bytes(make_dataset(RAMP, WindowCenter=0, WindowWidth=0)), LIMITS)
    assert any("not usable" in remark for remark in slices.remarks)
    assert slices.grays[0].max() == 255


@pytest.mark.parametrize("flat", [0, 7, 4095])
def test_a_flat_image_without_a_window_is_black(flat: int) -> None:
    assert not read_one(np.full((32, 32), flat, np.uint16)).any()


# ---- colour, frames ----


@pytest.mark.parametrize("kind", ["RGB", "YBR_FULL", "YBR_FULL_422"])
def test_colour_becomes_grey(kind: str) -> None:
    grey = np.arange(0, 256, 2, dtype=np.uint8).reshape(8, 16)
    neutral = np.full_like(grey, 128)
    if kind == "YBR_FULL_422":
        pairs = np.stack([grey[:, ::2], grey[:, 1::2], neutral[:, ::2], neutral[:, ::2]], axis=-1)
        pixels = pairs.tobytes()
    else:
        pixels = np.stack([grey] + ([grey] * 2 if kind == "RGB" else [neutral] * 2), axis=-1).tobytes()
    more = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": kind, "PixelData": pixels}
    slices = read_slices(to_bytes(make_dataset(grey, **more)), LIMITS)
    assert np.abs(slices.grays[0].astype(int) - grey).max() <= 1
    assert "colour was made grey" in slices.remarks


def test_a_palette_becomes_grey() -> None:
    stored = np.arange(64, dtype=np.uint8).reshape(8, 8)
    tables = {}
    for colour in ("Red", "Green", "Blue"):
        tables[f"{colour}PaletteColorLookupTableDescriptor"] = [64, 0, 16]
        tables[f"{colour}PaletteColorLookupTableData"] = (np.arange(64, dtype="<u2") * 1024).tobytes()
    gray = read_one(stored, PhotometricInterpretation="PALETTE COLOR", **tables)
    assert np.array_equal(gray, stored * 4)


def enhanced() -> Dataset:
    """Return five frames whose own windows end at 100, 200, ... and that share their position."""
    stored = np.repeat(np.arange(0, 1000, 10, dtype=np.uint16)[None], 5, axis=0).reshape(5, 10, 10)
    per_frame = []
    for number in range(1, 6):
        voi, groups = Dataset(), Dataset()
        voi.WindowCenter, voi.WindowWidth, voi.VOILUTFunction = 50 * number, 100 * number, "LINEAR_EXACT"
        groups.FrameVOILUTSequence = Sequence([voi])
        per_frame.append(groups)
    transformation, shared = Dataset(), Dataset()
    transformation.RescaleSlope, transformation.RescaleIntercept = 2, 0
    shared.PixelValueTransformationSequence = Sequence([transformation])
    return make_dataset(
        stored,
        SOPClassUID=uid.EnhancedMRImageStorage,
        NumberOfFrames=5,
        PerFrameFunctionalGroupsSequence=Sequence(per_frame),
        SharedFunctionalGroupsSequence=Sequence([shared]),
    )


def test_frames_are_chosen_and_windowed_each_by_its_own() -> None:
    data = to_bytes(enhanced())
    middle, last, everything = (read_slices(data, LIMITS, frames=frames) for frames in ("middle", 4, "all"))
    assert (middle.frames, last.frames, everything.frames) == ((2,), (4,), (0, 1, 2, 3, 4))
    assert middle.num_frames == 5
    assert np.array_equal(middle.grays[0], everything.grays[2])
    full_at = [int((gray.ravel() == 255).argmax()) for gray in everything.grays]
    assert full_at == [5, 10, 15, 20, 25]  # rescaled by 2: half of 100, 200, ... in steps of 10
    with pytest.raises(UnreadableDicom, match="frames 0 to 4"):
        read_slices(data, LIMITS, frames=5)
    with pytest.raises(UnreadableDicom, match="max_frames"):
        read_slices(data, DicomLimits(max_frames=4), frames="all")


# ---- compressed ----


def by_pydicom(syntax: uid.UID) -> Callable[[Path], bytes]:
    def encode(folder: Path) -> bytes:
        dataset = pydicom.dcmread(folder / "plain.dcm")
        dataset.compress(syntax, generate_instance_uid=False)
        return to_bytes(dataset)

    return encode


def by_dcmtk(program: str, option: str) -> Callable[[Path], bytes]:
    def encode(folder: Path) -> bytes:
        if shutil.which(program) is None:
            pytest.skip(f"{program} of dcmtk is not installed")
        made = folder / "encoded.dcm"
        subprocess.run([program, option, folder / "plain.dcm", made], check=True, capture_output=True, timeout=20)
        return made.read_bytes()

    return encode


def by_openjpeg(folder: Path) -> bytes:
    dataset = pydicom.dcmread(folder / "plain.dcm")
    return to_bytes(jpeg2000(dataset, encode_array(dataset.pixel_array, bits_stored=12)))


def jpeg2000(dataset: Dataset, stream: bytes) -> Dataset:
    dataset.file_meta.TransferSyntaxUID = uid.JPEG2000Lossless
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].is_undefined_length = True
    return dataset


LOSSLESS = {
    "RLE": by_pydicom(uid.RLELossless),
    "RLE of dcmtk": by_dcmtk("dcmcrle", "+fo"),
    "JPEG-LS": by_pydicom(uid.JPEGLSLossless),
    "JPEG-LS of dcmtk": by_dcmtk("dcmcjpls", "+el"),
    "JPEG lossless": by_dcmtk("dcmcjpeg", "+el"),
    "JPEG lossless SV1": by_dcmtk("dcmcjpeg", "+e1"),
    "JPEG 2000": by_openjpeg,
    "deflated": by_dcmtk("dcmconv", "+td"),
    "big endian": by_dcmtk("dcmconv", "+tb"),
    "implicit": by_dcmtk("dcmconv", "+ti"),
}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    made = make_dataset(slice_12_bits(), WindowCenter=1200, WindowWidth=2400, StudyInstanceUID="1.2.3")
    made.SeriesInstanceUID = "1.2.3.4"
    (tmp_path / "plain.dcm").write_bytes(to_bytes(made))
    return tmp_path


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_lossless_syntaxes_give_the_same_grey_and_truncation_is_noticed(syntax: str, plain: Path) -> None:
    data = LOSSLESS[syntax](plain)
    expected = read_slices((plain / "plain.dcm").read_bytes(), LIMITS).grays[0]
    assert np.array_equal(read_slices(data, LIMITS).grays[0], expected)
    for share in (0.6, 0.8, 0.95):
        with pytest.raises(UnreadableDicom):
            read_slices(data[: int(len(data) * share)], LIMITS)


def test_lossy_jpeg_is_read_near_enough(tmp_path: Path) -> None:
    stored = cv2.GaussianBlur((slice_12_bits() / 16).astype(np.uint8), (5, 5), 0)
    made = make_dataset(stored, StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.4")
    (tmp_path / "plain.dcm").write_bytes(to_bytes(made))
    data = by_dcmtk("dcmcjpeg", "+eb")(tmp_path)
    slices = read_slices(data, LIMITS)
    assert np.abs(slices.grays[0].astype(int) - stored).mean() < 3
    assert any("loss" in remark for remark in slices.remarks)


def test_twelve_bit_jpeg_is_refused_by_name(plain: Path) -> None:
    with pytest.raises(UnreadableDicom, match=r"12-bit JPEG Extended .* dcmdjpeg"):
        read_slices(by_dcmtk("dcmcjpeg", "+ee")(plain), LIMITS)


@pytest.mark.parametrize("syntax", [uid.HTJ2K, uid.MPEG2MPML, uid.HEVCMP51])
def test_other_syntaxes_are_refused_by_name(syntax: uid.UID) -> None:
    dataset = make_dataset(slice_12_bits())
    dataset.PixelData = encapsulate([b"\xff\x4f\xff\x51"])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    with pytest.raises(UnreadableDicom, match=rf"\({syntax}\) is not read; let the sender convert"):
        read_slices(to_bytes(dataset), LIMITS)


# ---- refused ----

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "CT": ({"Modality": "CT", "SOPClassUID": uid.CTImageStorage}, "modality is CT, class CT Image Storage"),
    "no modality": ({"Modality": None}, "modality is not given"),
    "radiograph in an MR class": ({"Modality": "CR"}, "modality is CR"),
    "no rows": ({"Rows": None}, "Rows is missing"),
    "no rows at all": ({"Rows": 0}, "expected 1 to 4096"),
    "far too many columns": ({"Columns": 65535}, "65535x60"),
    "no photometric interpretation": ({"PhotometricInterpretation": None}, "1 samples a pixel as nothing"),
    "HSV": ({"PhotometricInterpretation": "HSV", "SamplesPerPixel": 3}, "3 samples a pixel as HSV"),
    "two samples": ({"SamplesPerPixel": 2}, "2 samples"),
    "32 bits": ({"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}, "BitsAllocated is 32"),
    "1 bit": ({"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}, "BitsAllocated is 1"),
    "bits that do not fit": ({"BitsStored": 17}, "do not fit into 16 bits"),
    "more frames than pixels": ({"NumberOfFrames": 3}, "pixel data is truncated"),
    "no frames": ({"NumberOfFrames": 0}, "NumberOfFrames is 0"),
    "frames without end": ({"NumberOfFrames": 2**31 - 1}, "NumberOfFrames is 2147483647"),
    "empty pixel data": ({"PixelData": b""}, "pixel data is empty"),
    "no pixel data": ({"PixelData": None}, "no pixel data"),
    "unknown window function": ({"WindowCenter": 1, "WindowWidth": 9, "VOILUTFunction": "CURVE"}, "expected LINEAR"),
    "a palette without tables": ({"PhotometricInterpretation": "PALETTE COLOR"}, "palette cannot be used"),
    "a table that is too short": ({"VOILUTSequence": Sequence([table(0, [1, 2], says=300)])}, "descriptor says 300"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_answered_is_refused_with_the_reason(case: str) -> None:
    elements, reason = REFUSED[case]
    with pytest.raises(UnreadableDicom, match=reason) as refused:
        read_slices(to_bytes(make_dataset(slice_12_bits(), **elements)), LIMITS)
    assert "Secret" not in refused.value.reason


def test_other_modalities_may_be_answered_with_a_remark() -> None:
    data = to_bytes(make_dataset(RAMP, Modality="CT", SOPClassUID=uid.CTImageStorage))
    slices = read_slices(data, DicomLimits(other_modalities="caution"))
    assert slices.remarks[0] == "modality is CT, class CT Image Storage: the model was made for MR images"


def test_a_secondary_capture_is_answered_with_a_remark() -> None:
    data = to_bytes(make_dataset(RAMP, Modality="OT", SOPClassUID=uid.SecondaryCaptureImageStorage))
    assert "Secondary Capture" in read_slices(data, LIMITS).remarks[0]


@pytest.mark.parametrize("data", [b"", b"DICM", b"\0" * 4096, b"\xff\xd8\xff" + b"\0" * 500])
def test_other_files_are_no_dicom(data: bytes) -> None:
    with pytest.raises(UnreadableDicom, match="not a DICOM file"):
        read_slices(data, LIMITS)


PLAIN = to_bytes(make_dataset(slice_12_bits()))


@settings(max_examples=60, deadline=None)
@given(length=st.integers(0, len(PLAIN) - 1))
def test_no_truncated_file_is_answered(length: int) -> None:
    with pytest.raises(UnreadableDicom):
        read_slices(PLAIN[:length], LIMITS)


@settings(max_examples=150, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255)), min_size=1, max_size=4))
def test_damage_to_the_header_is_refused_or_harmless(changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(PLAIN)
    for at, value in changes:
        damaged[at] = value
    try:
        slices = read_slices(bytes(damaged), LIMITS)
    except UnreadableDicom as refused:
        assert "Secret" not in refused.reason
    else:
        assert slices.grays[0].dtype == np.uint8


# ---- bombs ----


def test_a_file_past_the_limit_is_refused() -> None:
    with pytest.raises(UnreadableDicom, match="raise max_file_bytes"):
        read_slices(PLAIN, DicomLimits(max_file_bytes=len(PLAIN) - 1))


def test_a_deflated_bomb_is_not_inflated() -> None:
    dataset = make_dataset(slice_12_bits(), syntax=uid.DeflatedExplicitVRLittleEndian)
    data = to_bytes(dataset)
    end_of_meta = 144 + struct.unpack_from("<I", data, 140)[0]
    packer = zlib.compressobj(9, wbits=-15)
    packed = packer.compress(bytes(64 << 20)) + packer.flush()
    with pytest.raises(UnreadableDicom, match="inflates to more than 1048576"):
        read_slices(data[:end_of_meta] + packed, DicomLimits(max_file_bytes=1 << 20))


def test_an_rle_frame_that_unpacks_to_more_than_its_size_is_not_unpacked() -> None:
    segment = b"\x81\x00" * 400_000  # runs of 128
    header = struct.pack("<16I", 2, 64, 64 + len(segment), *[0] * 13)
    dataset = make_dataset(slice_12_bits(), syntax=uid.RLELossless)
    dataset.PixelData = encapsulate([header + segment + segment])
    dataset["PixelData"].is_undefined_length = True
    with pytest.raises(UnreadableDicom, match="RLE segment"):
        read_slices(to_bytes(dataset), LIMITS)


def test_a_codestream_larger_than_the_header_says_is_not_decoded() -> None:
    stream = encode_array(np.zeros((512, 512), np.uint16), bits_stored=12)
    dataset = jpeg2000(make_dataset(slice_12_bits()), stream)
    with pytest.raises(UnreadableDicom, match=r"coded as 512x512, .* says 48x60, .* Nothing was decoded"):
        read_slices(to_bytes(dataset), LIMITS)
    written, jpeg = cv2.imencode(".jpg", np.zeros((512, 512), np.uint8))
    assert written
    dataset = make_dataset(slice_12_bits().astype(np.uint8), syntax=uid.JPEGBaseline8Bit)
    dataset.PixelData = encapsulate([jpeg.tobytes()])
    dataset["PixelData"].is_undefined_length = True
    with pytest.raises(UnreadableDicom, match="coded as 512x512"):
        read_slices(to_bytes(dataset), LIMITS)


def test_sequences_nested_without_end_are_refused() -> None:
    opening = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    end_of_meta = 144 + struct.unpack_from("<I", PLAIN, 140)[0]
    with pytest.raises(UnreadableDicom, match="nested too deeply"):
        read_slices(PLAIN[:end_of_meta] + opening * 20_000, LIMITS)


def test_a_header_past_its_limit_is_refused() -> None:
    data = to_bytes(make_dataset(slice_12_bits(), ImageComments="x" * 5000))
    with pytest.raises(UnreadableDicom, match="raise max_header_bytes"):
        read_slices(data, DicomLimits(max_header_bytes=2048))
