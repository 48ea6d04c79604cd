"""Whatever comes as DICOM, by HTTP or by C-STORE, is refused with a reason, and the next image is answered the same."""

from __future__ import annotations

import json
import re
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import write_file_meta_info
from pynetdicom import AE
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

pytestmark = pytest.mark.filterwarnings(
    # pynetdicom drops a socket without closing it where a peer refuses or hangs up
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)
MIB = 1 << 20
MEMORY_MIB = 300
"""Most that all of this may add to the server."""
STUDY = "1.2.826.0.1.3680043.8.498.5"
SUCCESS, CANNOT_UNDERSTAND = 0x0000, 0xC000
RELATED = 'multipart/related; type="application/dicom"; boundary=XyZ'


def make_dataset(number: int = 1, **elements: Any) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.MRImageStorage, f"{STUDY}.7.{number}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY, f"{STUDY}.6"
    dataset.PatientName, dataset.PatientID, dataset.Modality = "SECRET^NAME", "SECRET-77", "MR"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 64, 48, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset["PixelData"] = pydicom.DataElement("PixelData", "OW", np.arange(64 * 48, dtype="<u2").tobytes())
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def file_of(dataset: Dataset, syntax: uid.UID = uid.ExplicitVRLittleEndian) -> bytes:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


GOOD = file_of(make_dataset())
HEAD = 144 + struct.unpack_from("<I", GOOD, 140)[0]
"""Where the data set begins."""


def with_elements(number: int = 1, **elements: Any) -> bytes:
    return file_of(make_dataset(number, **elements))


def with_text(keyword: str, text: str, vr: str = "IS") -> bytes:
    """Return the file with an element that pydicom would not write."""
    tag = pydicom.tag.Tag(keyword)
    value = text.encode() + b" " * (len(text) % 2)
    element = struct.pack("<HH2sH", tag.group, tag.element, vr.encode(), len(value)) + value
    at = GOOD.index(struct.pack("<HH", 0x0028, 0x0010))
    return GOOD[:at] + element + GOOD[at:]


def with_meta(change: Callable[[bytes], bytes], syntax: uid.UID) -> bytes:
    """Return the file with its data set changed and another transfer syntax claimed."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = syntax, STUDY, STUDY
    head = BytesIO()
    write_file_meta_info(head, meta, enforce_standard=True)
    return bytes(128) + b"DICM" + head.getvalue() + change(GOOD[HEAD:])


def encapsulated(frame: bytes, syntax: uid.UID, **elements: Any) -> bytes:
    dataset = make_dataset(**elements)
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    return file_of(dataset, syntax)


def deflate(body: bytes) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflater.compress(body) + deflater.flush()


def jpeg2000_of_single_pixels(side: int) -> bytes:
    """A codestream of 142 bytes that asks for a code block a pixel."""

    def segment(kind: int, content: bytes) -> bytes:
        return bytes([0xFF, kind]) + struct.pack(">H", len(content) + 2) + content

    sizes = struct.pack(">HIIIIIIIIH", 0, side, side, 0, 0, side, side, 0, 0, 1) + bytes([7, 1, 1])
    style = bytes([1, 0, 0, 1, 0, 5, 4, 4, 0, 1]) + b"\x11" * 6
    steps = bytes([0x40]) + bytes([64]) * 16
    part = b"\xff\x93" + bytes(40)
    start = segment(0x90, struct.pack(">HIBB", 0, 12 + len(part), 0, 1))
    head = b"\xff\x4f" + segment(0x51, sizes) + segment(0x52, style) + segment(0x5C, steps)
    return head + start + part + b"\xff\xd9"


def jpeg_of_many_scans(side: int) -> bytes:
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, side, side, 1) + bytes([1, 0x11, 0])
    return (
        b"\xff\xd8" + frame + (b"\xff\xda" + struct.pack(">H", 8) + bytes([1, 1, 0, 1, 63, 0, 0])) * 5000 + b"\xff\xd9"
    )


def nested(depth: int) -> bytes:
    opening = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    return GOOD[:HEAD] + (opening + item) * depth + GOOD[HEAD:]


def with_broken_kind(keyword: str) -> bytes:
    """Return the file with an element of a VR that does not exist."""
    tag = pydicom.tag.Tag(keyword)
    at = GOOD.index(struct.pack("<HH", tag.group, tag.element), HEAD) + 4
    return GOOD[:at] + b"U5" + GOOD[at + 2 :]


SIDE = 4096
EIGHT_BITS = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}

FILES: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "its prefix": (lambda: GOOD[:132], ()),
    "half a header": (lambda: GOOD[: HEAD + 90], ()),
    "half of the pixels": (lambda: GOOD[: -64 * 48], ("truncated",)),
    "no rows": (lambda: with_elements(Rows=0), ("1 to 4096",)),
    "65535 rows and columns": (lambda: with_elements(Rows=65535, Columns=65535), ("1 to 4096",)),
    "more rows than pixels": (lambda: with_elements(Rows=4000, Columns=4000), ("truncated", "need 32000000")),
    "2 million frames": (lambda: with_text("NumberOfFrames", "2147483647"), ("NumberOfFrames",)),
    "a million frames": (lambda: with_text("NumberOfFrames", "1048576"), ("truncated",)),
    "a negative number of frames": (lambda: with_text("NumberOfFrames", "-3"), ("NumberOfFrames",)),
    "an endless number of frames": (lambda: with_text("NumberOfFrames", "1e999"), ()),
    "frames in words": (lambda: with_text("NumberOfFrames", "several"), ()),
    "64 bits a pixel": (lambda: with_elements(BitsAllocated=64), ("BitsAllocated",)),
    "more bits stored than allocated": (lambda: with_elements(BitsStored=17), ("do not fit",)),
    "200 samples a pixel": (lambda: with_elements(SamplesPerPixel=200), ("samples a pixel",)),
    "an endless window": (lambda: with_text("WindowWidth", "1e999", "DS"), ()),
    "an endless slope": (lambda: with_text("RescaleSlope", "-1e999", "DS"), ()),
    "no pixels": (lambda: with_elements(PixelData=b""), ("empty",)),
    "a CT": (lambda: with_elements(Modality="CT"), ("MR",)),
    "an unknown kind of element": (lambda: with_broken_kind("Rows"), ()),
    "an unknown syntax": (lambda: with_meta(bytes, uid.UID("1.2.3.4")), ("transfer syntax",)),
    "a film": (lambda: with_meta(bytes, uid.MPEG2MPML), ("is not read", "Explicit VR Little Endian")),
    "a deflated bomb": (
        lambda: with_meta(lambda body: deflate(body + bytes(16 * MIB)), uid.DeflatedExplicitVRLittleEndian),
        ("inflates to more",),
    ),
    "a deflated file cut short": (
        lambda: with_meta(lambda body: deflate(body)[:-20], uid.DeflatedExplicitVRLittleEndian),
        ("truncated",),
    ),
    "noise that claims to be deflated": (
        lambda: with_meta(lambda _: np.random.default_rng(0).bytes(5000), uid.DeflatedExplicitVRLittleEndian),
        (),
    ),
    "sequences without end": (lambda: nested(50_000), ("nested too deeply",)),
    "a length past the end": (lambda: GOOD[: HEAD + 4] + b"UT\0\0\xfe\xff\xff\xff" + GOOD[HEAD + 12 :], ()),
    "a JPEG 2000 frame of millions of blocks": (
        lambda: encapsulated(
            jpeg2000_of_single_pixels(SIDE), uid.JPEG2000Lossless, Rows=SIDE, Columns=SIDE, **EIGHT_BITS
        ),
        ("code blocks", "Explicit VR Little Endian"),
    ),
    "a JPEG frame of 5000 scans": (
        lambda: encapsulated(jpeg_of_many_scans(SIDE), uid.JPEGBaseline8Bit, Rows=SIDE, Columns=SIDE, **EIGHT_BITS),
        ("5000 scans",),
    ),
    "an RLE frame that unpacks without end": (
        lambda: encapsulated(struct.pack("<16I", 2, 64, 66, *[0] * 13) + b"\x81\0" * 500_000, uid.RLELossless),
        ("RLE",),
    ),
    "a JPEG frame of noise": (
        lambda: encapsulated(b"\xff\xd8" + np.random.default_rng(0).bytes(2000) + b"\xff\xd9", uid.JPEGBaseline8Bit),
        ("damaged",),
    ),
}


# ---- the server ----


class Court:
    """The server, its good answer before all this, and the memory that it had."""

    def __init__(self, endpoint: Any, results: Path) -> None:
        self.endpoint = endpoint
        self.client = endpoint.client()
        self.port: int = endpoint.wait_for("listening for DICOM")["port"]
        self.results = results
        self._answer = self.good_answer()
        self.memory_before = self.memory_mib("VmRSS")

    def good_answer(self) -> bytes:
        answer = self.client.post("/v1/predict", content=GOOD)
        assert answer.status_code == 200
        return bytes(answer.content)

    def require_as_before(self) -> None:
        assert self.endpoint.process.poll() is None
        assert self.good_answer() == self._answer

    def memory_mib(self, key: str) -> float:
        found = re.search(rf"{key}:\s+(\d+) kB", Path(f"/proc/{self.endpoint.process.pid}/status").read_text())
        assert found is not None
        return int(found[1]) / 1024

    def stow(self, body: bytes, path: str = "/studies", kind: str = RELATED) -> Any:
        return self.client.post(f"/dicom-web{path}", content=body, headers={"content-type": kind})

    def associate(self) -> Any:
        entity = AE(ae_title="SCANNER")
        entity.add_requested_context(uid.MRImageStorage, uid.ExplicitVRLittleEndian)
        entity.add_requested_context(Verification)
        entity.dimse_timeout = entity.acse_timeout = 3
        return entity.associate("127.0.0.1", self.port, ae_title="GLIOFED")

    def require_scp_as_before(self, number: int) -> None:
        """The SCP takes an image that it has not seen, and its results arrive."""
        num_results = len(list(self.results.rglob("*.dcm")))
        peer = eventually(lambda: established(self.associate()))
        assert peer.send_c_store(make_dataset_for_sending(number)).Status == SUCCESS
        peer.release()
        eventually(lambda: len(list(self.results.rglob("*.dcm"))) > num_results)


def established(peer: Any) -> Any:
    return peer if peer.is_established else None


def make_dataset_for_sending(number: int) -> Dataset:
    return pydicom.dcmread(BytesIO(with_elements(number)))


def eventually(find: Callable[[], Any]) -> Any:
    began = time.monotonic()
    while not (found := find()):
        assert time.monotonic() < began + 15
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def court(serve_module: Any, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Court]:
    folder = tmp_path_factory.mktemp("dicom")
    dicom = {
        "port": 0,
        "callers": ["SCANNER"],
        "spool": str(folder / "spool"),
        "store_in": str(folder / "results"),
        "timeout_seconds": 1,
        "max_associations": 4,
        "limits": {"max_file_bytes": 8 * MIB},
    }
    made = Court(serve_module(tiny_bundle, settings={"dicom": dicom}), folder / "results")
    yield made
    made.client.close()


def require_no_secret(text: str) -> None:
    for secret in ("SECRET", STUDY, "Traceback", "site-packages", ".py"):
        assert secret not in text


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_refused_with_the_reason_by_every_door(court: Court, name: str) -> None:
    make, words = FILES[name]
    data = make()
    answer = court.client.post("/v1/predict", content=data)
    assert answer.status_code in (400, 413, 415), answer.text[:300]
    told = json.loads(answer.content)
    assert set(told) == {"error"} and len(told["error"]) >= 10
    for word in words:
        assert word in told["error"]
    require_no_secret(told["error"])
    stored = court.stow(related(data))
    assert stored.status_code in (200, 409), stored.text[:300]  # some damage shows in the pixels alone
    require_no_secret(stored.headers.get("warning", ""))
    court.require_as_before()


def test_a_damaged_identifier_is_never_a_fault(court: Court) -> None:
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientName"):
        data = with_broken_kind(keyword)
        assert court.client.post("/v1/predict", content=data).status_code in (200, 400)
        assert court.stow(related(data)).status_code in (200, 409)
    court.require_as_before()


def test_a_frame_that_is_not_there_is_refused(court: Court) -> None:
    answer = court.client.post("/v1/predict?frame=1", content=GOOD)
    assert answer.status_code == 400 and "frames 0 to 0" in answer.json()["error"]


# ---- STOW-RS ----


def related(*files: bytes) -> bytes:
    head = b"--XyZ\r\nContent-Type: application/dicom\r\n\r\n"
    return b"".join(head + data + b"\r\n" for data in files) + b"--XyZ--\r\n"


@pytest.mark.parametrize(
    ("body", "kind", "status", "word"),
    [
        (b"", RELATED, 400, "part"),
        (np.random.default_rng(0).bytes(100_000), RELATED, 400, "part"),
        (related(GOOD)[:-30], RELATED, 400, "truncated"),
        (related(*[b""] * 20_000), RELATED, 413, "parts"),
        (related(GOOD), "multipart/related; type=application/dicom; boundary*=a; boundary*0=b", 400, "boundary"),
        (related(GOOD), f"multipart/related; type=application/dicom; boundary={'x' * 5000}", 400, "boundary"),
        (related(GOOD), "multipart/form-data; boundary=XyZ", 415, "multipart/related"),
        (related(GOOD), "", 415, "multipart/related"),
        (bytes(40 * MIB), RELATED, 413, "max_body_bytes"),
    ],
    ids=["empty", "noise", "cut short", "20,000 parts", "in pieces", "long", "a form", "no type", "too long"],
)
def test_what_is_no_stow_is_refused_with_what_to_send(
    court: Court, body: bytes, kind: str, status: int, word: str
) -> None:
    answer = court.stow(body, kind=kind)
    assert answer.status_code == status and word in answer.json()["error"]
    require_no_secret(answer.text)
    court.require_as_before()


@pytest.mark.parametrize("study", ["..%2f..%2fetc", "%00", "x" * 5000, "%f0%9f%a7%a0"])
def test_a_study_that_is_none_keeps_nothing(court: Court, study: str) -> None:
    answer = court.stow(related(GOOD), f"/studies/{study}")
    assert answer.status_code in (404, 409)
    court.require_as_before()


# ---- C-STORE ----


def associate_request(length: int | None = None) -> bytes:
    """An A-ASSOCIATE-RQ without presentation contexts (PS3.8 9.3.2); length: what it says of itself."""
    body = struct.pack(">HH16s16s32x", 1, 0, b"GLIOFED".ljust(16), b"SCANNER".ljust(16))
    return struct.pack(">BxI", 1, len(body) if length is None else length) + body


NOISE = {
    "zeros": bytes(20_000),
    "noise": np.random.default_rng(2).bytes(100_000),
    "HTTP": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    "an unknown PDU": struct.pack(">BxI", 0x77, 4) + b"abcd",
    "data before an association": struct.pack(">BxI", 4, 10) + bytes(10),
    "a PDU of 4 GiB": associate_request(length=0xFFFFFFFF),
    "an association for nothing": associate_request(),
    "half an association": associate_request()[:40],
    "a PDU of nothing": struct.pack(">BxI", 1, 0),
    "an abort": struct.pack(">BxI4x", 7, 4),
}


def test_noise_at_the_port_ends_in_a_hang_up(court: Court) -> None:
    for name, data in NOISE.items():
        with socket.create_connection(("127.0.0.1", court.port), timeout=10) as connection, suppress(ConnectionError):
            connection.sendall(data)
            while connection.recv(65536):
                pass
        assert court.endpoint.process.poll() is None, name
    court.require_scp_as_before(101)
    court.require_as_before()


def test_peers_that_hang_up_stay_silent_or_abort_leave_room_for_others(court: Court) -> None:
    with ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(socket.create_connection(("127.0.0.1", court.port), timeout=10))
        for _ in range(4):
            socket.create_connection(("127.0.0.1", court.port), timeout=10).close()
        time.sleep(0.2)
    for _ in range(4):
        peer = court.associate()
        if peer.is_established:
            peer.abort()
    court.require_scp_as_before(102)


def test_data_sets_of_noise_are_refused_on_an_association_that_lives_on(court: Court) -> None:
    peer = eventually(lambda: established(court.associate()))
    cases = [
        b"",
        b"\0",
        np.random.default_rng(3).bytes(5000),
        GOOD[HEAD : HEAD + 200],
        with_broken_kind("StudyInstanceUID")[HEAD:],
    ]
    for number, data in enumerate(cases, 1):
        assert send_raw(peer, data, number) in (CANNOT_UNDERSTAND, None), number
        if not peer.is_established:
            peer = eventually(lambda: established(court.associate()))
    peer.release()
    court.require_scp_as_before(103)


def send_raw(peer: Any, data: bytes, number: int) -> int | None:
    """Send bytes as a data set and return the status; None where the other end hung up."""
    message = C_STORE()
    message.MessageID, message.Priority = number, 2
    message.AffectedSOPClassUID, message.AffectedSOPInstanceUID = uid.MRImageStorage, f"{STUDY}.9.{number}"
    message.DataSet = BytesIO(data)
    context = next(one for one in peer.accepted_contexts if one.abstract_syntax == uid.MRImageStorage)
    peer._reactor_checkpoint.clear()
    try:
        peer.dimse.send_msg(message, context.context_id)
        _, answer = peer.dimse.get_msg(block=True)
    finally:
        peer._reactor_checkpoint.set()
    return None if answer is None else int(answer.Status)


# ---- afterwards ----


def test_memory_stayed_within_bounds_and_nothing_went_wrong_inside(court: Court) -> None:
    court.require_as_before()
    assert court.memory_mib("VmRSS") < court.memory_before + MEMORY_MIB
    assert [line for line in court.endpoint.log() if line["level"] in ("error", "critical")] == []
    text = court.endpoint.log_file.read_text()
    assert "SECRET" not in text and STUDY not in text
