from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from fastapi import FastAPI
from pydantic import ValidationError
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pynetdicom import AE, evt

from export.answer import Answer
from export.signing import Trust
from fl.errors import DataError
from service.dicom.desk import Desk
from service.dicom.errors import DeliveryError
from service.dicom.model import Engine, ModelIdentity
from service.dicom.run import DicomService, start
from service.dicom.send import RESULT_CLASSES
from service.dicom.settings import DicomLimits, DicomSettings, PeerSettings
from service.dicom.spool import Spool, SpoolFull
from service.dicom.stow import stow_router
from service.endpoint.app import create_app
from service.endpoint.dicom_door import dicom_door
from service.endpoint.settings import ServeSettings
from service.predicting import predict_images

pytestmark = pytest.mark.filterwarnings(
    # pynetdicom drops a socket without closing it where a peer refuses or hangs up
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)
LABELS = ("glioma", "meningioma", "notumor", "pituitary")
STUDY = "1.2.826.0.1.3680043.8.498.5"
OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0xA700, 0xC000


def make_file(number: int = 1, **elements: Any) -> bytes:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.MRImageStorage, f"1.2.826.0.1.3680043.8.498.7.{number}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY, f"{STUDY}.6"
    dataset.PatientName, dataset.PatientID, dataset.Modality = "Secret^Name", "SECRET-77", "MR"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 64, 48, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset["PixelData"] = pydicom.DataElement("PixelData", "OW", (np.arange(64 * 48, dtype="<u2")).tobytes())
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def answer_all(grays: Any) -> list[Answer]:
    return [
        Answer(
            label="glioma",
            index=0,
            labels=LABELS,
            probabilities_C=np.array([0.7, 0.1, 0.1, 0.1], np.float32),
            calibrated=False,
            uncertainty=0.5,
            prediction_set=LABELS,
            ood_score=None,
            ood_threshold=None,
            out_of_distribution=False,
            abstains=False,
            cautions=(),
            head_found=False,
            box=None,
            image_size=gray.shape[::-1],
            class_maps_Chw=np.zeros((4, 4, 4), np.float32),
            cell_pixels=(gray.shape[1] / 4, gray.shape[0] / 4),
        )
        for gray in grays
    ]


ENGINE = Engine(
    identity=ModelIdentity(name="gliofed", version="1", digest="ab" * 32, precision="float32", software="0.1.0"),
    answer=answer_all,
    draw=lambda gray, _: np.repeat(gray[:, :, None], 3, axis=2),
)


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.02)


def settings_for(folder: Path, **changes: Any) -> DicomSettings:
    values = {"port": 0, "callers": ("SCANNER",), "spool": folder / "spool", "store_in": folder / "results"}
    return DicomSettings.model_validate(values | {"retry_seconds": 0.05, "timeout_seconds": 10} | changes)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[DicomService]:
    running = start(settings_for(tmp_path), lambda: ENGINE)
    yield running
    running.stop()


def store(port: int, files: list[bytes], caller: str = "SCANNER", called: str = "GLIOFED") -> list[int] | None:
    """Send files by C-STORE; return the statuses, None where the association was refused."""
    entity = AE(ae_title=caller)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 10
    entity.add_requested_context(uid.MRImageStorage)
    entity.add_requested_context(uid.CTImageStorage)
    association = entity.associate("127.0.0.1", port, ae_title=called)
    if not association.is_established:
        return None
    statuses = [association.send_c_store(pydicom.dcmread(BytesIO(data))).get("Status", -1) for data in files]
    association.release()
    return statuses


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.dcm")) if folder.exists() else []


# ---- SCP ----


def test_what_is_stored_is_answered_once(
    service: DicomService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "gliofed.dicom")
    assert store(service.port, [make_file(1), make_file(2), make_file(1)]) == [0, 0, 0]
    until(lambda: len(names_in(tmp_path / "results")) == 4, "an overlay and a report for two images")
    store(service.port, [make_file(1)])
    until(lambda: not list((tmp_path / "spool").rglob("*.dcm")), "an empty spool")
    assert len(names_in(tmp_path / "results")) == 4
    assert "SECRET" not in caplog.text
    assert "Secret" not in caplog.text
    assert STUDY not in caplog.text


@pytest.mark.parametrize(("caller", "called"), [("STRANGER", "GLIOFED"), ("SCANNER", "OTHER")])
def test_strangers_are_turned_away(service: DicomService, caller: str, called: str) -> None:
    assert store(service.port, [make_file()], caller, called) is None


def test_what_cannot_be_answered_is_refused_while_the_sender_is_there(service: DicomService, tmp_path: Path) -> None:
    other = store(
        service.port, [make_file(Modality="CR"), make_file(PixelData=b"\0" * 10), make_file(StudyInstanceUID="")]
    )
    assert other == [CANNOT_UNDERSTAND] * 3
    assert not list((tmp_path / "spool").rglob("*.dcm"))


def test_more_than_may_wait_is_refused_with_out_of_resources(tmp_path: Path) -> None:
    hold = threading.Event()

    def slow(grays: Any) -> list[Answer]:
        hold.wait(20)
        return answer_all(grays)

    engine = Engine(identity=ENGINE.identity, answer=slow, draw=ENGINE.draw)
    running = start(settings_for(tmp_path, max_waiting=2), lambda: engine)
    try:
        assert store(running.port, [make_file(number) for number in range(3)]) == [0, 0, OUT_OF_RESOURCES]
        hold.set()
        until(lambda: len(names_in(tmp_path / "results")) == 4, "results of the two that were taken")
        assert store(running.port, [make_file(2)]) == [0]
    finally:
        hold.set()
        running.stop()


def test_a_message_without_end_is_cut_off_and_the_next_is_served(tmp_path: Path) -> None:
    running = start(settings_for(tmp_path, limits={"max_file_bytes": 20_000}), lambda: ENGINE)
    try:
        huge = make_file(9, Rows=2048, Columns=1024, PixelData=bytes(2048 * 1024 * 2))
        assert store(running.port, [huge]) in ([-1], None)
        assert store(running.port, [make_file()]) == [0]
    finally:
        running.stop()


def test_a_port_that_is_taken_is_told(service: DicomService, tmp_path: Path) -> None:
    with pytest.raises(DeliveryError, match="choose another port"):
        start(settings_for(tmp_path / "second", port=service.port), lambda: ENGINE)


# ---- delivery ----


class Pacs:
    """A peer that takes results; `statuses` are what it answers, one after the other, then success."""

    def __init__(self, port: int = 0, statuses: tuple[int, ...] = ()) -> None:
        self.classes: list[str] = []
        self._statuses = list(statuses)
        entity = AE(ae_title="PACS")
        for sop_class in RESULT_CLASSES:
            entity.add_supported_context(sop_class)
        server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._take)])
        assert server is not None
        self.server = server
        self.port = int(server.server_address[1])

    def _take(self, event: evt.Event) -> int:
        status = self._statuses.pop(0) if self._statuses else 0
        if status == 0:
            self.classes.append(str(event.dataset.SOPClassUID))
        return status


def peer(port: int) -> dict[str, Any]:
    return {"store_in": None, "send_to": PeerSettings(ae_title="PACS", host="127.0.0.1", port=port)}


def test_results_wait_for_a_peer_that_is_away_over_a_restart(tmp_path: Path) -> None:
    pacs = Pacs()
    pacs.server.shutdown()
    settings = settings_for(tmp_path, **peer(pacs.port), attempts=1000)
    running = start(settings, lambda: ENGINE)
    store(running.port, [make_file()])
    until(lambda: bool(list((tmp_path / "spool/outgoing").glob("*/attempts"))), "a try that fails")
    running.stop()
    back = Pacs(pacs.port)
    running = start(settings, lambda: ENGINE)
    try:
        until(lambda: len(back.classes) == 2, "delivery")
        until(lambda: not list((tmp_path / "spool/outgoing").iterdir()), "an empty spool")
    finally:
        running.stop()
        back.server.shutdown()


def test_only_what_was_not_taken_is_sent_again_and_at_last_put_aside(tmp_path: Path) -> None:
    pacs = Pacs(statuses=(0xA700, 0, 0xA700, 0xA700))
    running = start(settings_for(tmp_path, **peer(pacs.port), attempts=3), lambda: ENGINE)
    try:
        store(running.port, [make_file()])
        until(lambda: bool(list((tmp_path / "spool/failed").glob("*/reason.txt"))), "giving up")
        until(lambda: not list((tmp_path / "spool/outgoing").iterdir()), "an empty way out")
    finally:
        running.stop()
        pacs.server.shutdown()
    assert pacs.classes == [uid.EnhancedSRStorage]
    (kept,) = (tmp_path / "spool/failed").glob("*/*.dcm")
    assert kept.name.endswith("overlay.dcm")
    assert "after 3 tries" in kept.with_name("reason.txt").read_text()


def test_a_damaged_result_is_put_aside_and_does_not_hold_up_others(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_waiting=5)
    spool.answered(spool.admit(b"first"), {"0000-report.dcm": b"damaged"})
    spool.admit(make_file())
    running = start(settings_for(tmp_path, attempts=2), lambda: ENGINE)
    until(lambda: len(names_in(tmp_path / "results")) == 2, "results of the sound image")
    until(lambda: bool(list((tmp_path / "spool/failed").glob("*/0000-report.dcm"))), "putting aside")
    running.stop()


def test_images_that_wait_are_answered_after_a_restart(tmp_path: Path) -> None:
    Spool(tmp_path / "spool", max_waiting=5).admit(make_file())
    running = start(settings_for(tmp_path), lambda: ENGINE)
    until(lambda: len(names_in(tmp_path / "results")) == 2, "answers")
    running.stop()


def test_a_model_that_fails_ends_neither_the_service_nor_the_image(tmp_path: Path) -> None:
    def failing(grays: Any) -> list[Answer]:
        raise RuntimeError("Secret^Name")

    engines = [Engine(identity=ENGINE.identity, answer=failing, draw=ENGINE.draw), ENGINE]
    running = start(settings_for(tmp_path), lambda: engines.pop(0))
    store(running.port, [make_file(1), make_file(2)])
    until(lambda: len(names_in(tmp_path / "results")) == 2, "the second image's answer")
    running.stop()
    (reason,) = (tmp_path / "spool/failed").glob("*/reason.txt")
    assert reason.with_name("image.dcm").read_bytes()[128:132] == b"DICM"
    assert reason.read_text() == "RuntimeError while answering; the image is kept\n"


# ---- spool, settings ----


def test_a_spool_keeps_order_and_counts_the_same_image_once(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_waiting=2)
    first, second = spool.admit(b"one"), spool.admit(b"two")
    assert spool.admit(b"one") == first
    with pytest.raises(SpoolFull, match="2 images wait"):
        spool.admit(b"three")
    assert [spool.next_image(0.1), spool.next_image(0.1), spool.next_image(0.01)] == [first, second, None]
    assert spool.read(first) == b"one"
    spool.answered(first, {"a.dcm": b"result"})
    spool.give_up_image(second, "why")
    assert spool.num_waiting == 0
    assert spool.parcels() == [first]
    assert [path.read_bytes() for path in spool.contents(first)] == [b"result"]
    assert [spool.count_attempt(first), Spool(tmp_path, max_waiting=2).count_attempt(first)] == [1, 2]
    assert (tmp_path / "received").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"store_in": None}, "one of send_to and store_in"),
        ({"send_to": {"ae_title": "PACS", "host": "pacs", "port": 104}}, "one of send_to and store_in"),
        ({"callers": ()}, "at least 1 item"),
        ({"ae_title": "SEVENTEEN LETTERS"}, "match pattern"),
        ({"ae_title": "BACK\\SLASH"}, "match pattern"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        settings_for(tmp_path, **changes)


# ---- the command line ----


def test_predict_reads_dicom_and_writes_the_answers_objects(tiny_bundle: Path, trust: Trust, tmp_path: Path) -> None:
    (tmp_path / "slice.dcm").write_bytes(make_file())
    (tmp_path / "other.dcm").write_bytes(make_file(Modality="CR"))
    (told,) = predict_images(
        tiny_bundle, [tmp_path / "slice.dcm"], tmp_path / "map.png", trust=trust, dicom_out=tmp_path / "out"
    )
    assert (told["frame"], told["num_frames"], set(told["probabilities"])) == (0, 1, set(LABELS))
    assert names_in(tmp_path / "out") == ["slice-overlay.dcm", "slice-report.dcm"]
    report = pydicom.dcmread(tmp_path / "out/slice-report.dcm")
    assert (report.PatientID, report.DeviceSerialNumber) == ("SECRET-77", told["model"])
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match=r"other\.dcm: modality is CR"):
        list(predict_images(tiny_bundle, [tmp_path / "other.dcm"], None, trust=trust))


def test_predict_writes_no_image_s_results_over_another_s(tiny_bundle: Path, trust: Trust, tmp_path: Path) -> None:
    images = [tmp_path / "monday/slice.dcm", tmp_path / "tuesday/slice.dcm"]
    for number, image in enumerate(images):
        image.parent.mkdir()
        image.write_bytes(make_file(number))
    with pytest.raises(DataError, match=r"tuesday/slice\.dcm: .* over those of .*monday/slice\.dcm"):
        list(predict_images(tiny_bundle, images, None, trust=trust, dicom_out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert len(list(predict_images(tiny_bundle, images, None, trust=trust))) == 2


def test_predict_says_where_it_cannot_write(tiny_bundle: Path, trust: Trust, tmp_path: Path) -> None:
    image, taken = tmp_path / "slice.dcm", tmp_path / "taken"
    image.write_bytes(make_file())
    taken.write_text("a file")
    with pytest.raises(DataError, match=r"taken: cannot be written \(File exists\)"):
        list(predict_images(tiny_bundle, [image], None, trust=trust, dicom_out=taken))
    with pytest.raises(DataError, match=r"map\.png: cannot be written \(No such file or directory\)"):
        list(predict_images(tiny_bundle, [image], tmp_path / "absent/map.png", trust=trust))


def test_dicom_needs_nothing_of_training() -> None:
    program = (
        "import sys, pkgutil, importlib, service.dicom as d\n"
        "[importlib.import_module(f'service.dicom.{m.name}') for m in pkgutil.iter_modules(d.__path__)]\n"
        "print(sorted({'torch', 'ray', 'flwr', 'onnx', 'scipy'} & set(sys.modules)))"
    )
    flags = ["-P"] * sys.flags.safe_path + ["-S"] * sys.flags.no_site
    command = [sys.executable, *flags, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


# ---- STOW-RS ----


class Stow:
    """The routes with a desk that keeps images but does not answer them."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        settings = settings_for(folder, **changes)
        self.spool = Spool(settings.spool, max_waiting=settings.max_waiting)
        app = FastAPI()
        app.include_router(stow_router(Desk(settings, self.spool, lambda: ENGINE, lambda _: None), settings.limits))
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gliofed")

    def post(self, body: bytes, path: str = "/studies", kind: str | None = None) -> httpx.Response:
        content_type = kind or 'multipart/related; type="application/dicom"; boundary=XyZ'
        return asyncio.run(self._client.post(f"/dicom-web{path}", content=body, headers={"Content-Type": content_type}))


def test_an_image_that_comes_while_no_model_is_served_waits_for_one(tiny_bundle: Path, tmp_path: Path) -> None:
    dicom = settings_for(tmp_path)
    settings = ServeSettings.model_validate({"bundles": [{"path": tiny_bundle}], "dicom": dicom})

    async def run() -> None:
        app = create_app(settings)
        models = app.state.serving.models
        models.load_all()
        transport = httpx.ASGITransport(app=app)
        async with (
            dicom_door(app, app.state.serving, dicom),
            httpx.AsyncClient(transport=transport, base_url="http://gliofed") as client,
        ):
            models.unload("tiny")
            headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=XyZ'}
            sent = await client.post("/dicom-web/studies", content=related(make_file()), headers=headers)
            assert sent.status_code == 200
            await asyncio.sleep(0.5)
            figures = (await client.get("/metrics")).text
            assert "gliofed_dicom_undelivered 1.0" in figures and "gliofed_dicom_failed 0.0" in figures
            models.reload()
            await asyncio.to_thread(until, lambda: len(list(tmp_path.glob("results/*.dcm"))) == 2, "an answer")
        app.state.serving.close()

    asyncio.run(asyncio.wait_for(run(), 40))


def test_an_image_whose_model_does_not_come_back_waits_for_the_next_start(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    desk = Desk(settings, Spool(settings.spool, max_waiting=9), lambda: None, lambda _: None)
    desk.start()
    key = desk.receive(make_file())
    desk.stop()
    assert names_in(settings.spool / "received") == [f"{key}.dcm"]
    assert desk.given_up() == 0


def related(*files: bytes) -> bytes:
    head = b"--XyZ\r\nContent-Type: application/dicom\r\n\r\n"
    return b"".join(head + data + b"\r\n" for data in files) + b"--XyZ--\r\n"


def test_stow_keeps_images_and_names_each(tmp_path: Path) -> None:
    stow = Stow(tmp_path)
    files = [make_file(1), make_file(2)]
    reply = stow.post(related(*files), f"/studies/{STUDY}")
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/dicom+json"
    told = Dataset.from_json(reply.json())
    assert [item.ReferencedSOPInstanceUID[-2:] for item in told.ReferencedSOPSequence] == [".1", ".2"]
    assert "FailedSOPSequence" not in told
    keys = [stow.spool.next_image(0.1), stow.spool.next_image(0.1)]
    assert [stow.spool.read(key) for key in keys if key] == files


def test_stow_tells_what_it_did_not_keep_and_why(tmp_path: Path) -> None:
    stow = Stow(tmp_path)
    reply = stow.post(related(make_file(1), make_file(2, Modality="CR"), b"no dicom"))
    assert reply.status_code == 202
    told = Dataset.from_json(reply.json())
    assert len(told.ReferencedSOPSequence) == 1
    assert [item.FailureReason for item in told.FailedSOPSequence] == [CANNOT_UNDERSTAND]
    assert [item.FailureReason for item in told.OtherFailuresSequence] == [CANNOT_UNDERSTAND]
    assert "modality is CR" in reply.headers["warning"]
    assert stow.post(related(make_file(3)), "/studies/1.2.3").status_code == 409


def test_stow_says_when_to_come_again(tmp_path: Path) -> None:
    stow = Stow(tmp_path, max_waiting=1)
    assert stow.post(related(make_file(1), make_file(2))).status_code == 202
    reply = stow.post(related(make_file(3)))
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (related(b""), "application/dicom", 415),
        (related(b""), "multipart/related; type=application/json; boundary=XyZ", 415),
        (related(b""), "multipart/related; type=application/dicom", 400),
        (b"", None, 400),
        (related(make_file())[:-8], None, 400),
        (b"--XyZ\r\nno header\r\n--XyZ--", None, 400),
        (related(b"x").replace(b"application/dicom", b"image/jpeg"), None, 415),
        (related(bytes(30_000)), None, 413),
    ],
)
def test_other_requests_are_answered_with_what_to_send(
    body: bytes, kind: str | None, status: int, tmp_path: Path
) -> None:
    reply = Stow(tmp_path, limits=DicomLimits(max_file_bytes=20_000)).post(body, kind=kind)
    assert (reply.status_code, list(reply.json())) == (status, ["error"])
