"""Real peers: storescu of dcmtk sends to our SCP, Orthanc takes the results."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import cv2
import httpx
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from export.bundle import load_bundle
from export.predictor import Predictor
from export.signing import Trust
from service.dicom.engine import engine_of
from service.dicom.model import Engine
from service.dicom.run import DicomService, start
from service.dicom.settings import DicomSettings, PeerSettings

# pynetdicom puts programs of the same names into the environment: dcmtk's are meant
SYSTEM_PATH = "/usr/bin:/usr/local/bin"
STORESCU = shutil.which("storescu", path=SYSTEM_PATH)
ECHOSCU = shutil.which("echoscu", path=SYSTEM_PATH)
ORTHANC = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/bin")
STUDY, SERIES = "1.2.826.0.1.3680043.8.498.5", "1.2.826.0.1.3680043.8.498.6"


@pytest.fixture(scope="module", autouse=True)
def peers() -> None:
    missing = [name for name in ("storescu", "echoscu", "dsrdump") if shutil.which(name, path=SYSTEM_PATH) is None]
    if ORTHANC is None or missing:
        pytest.skip(f"Orthanc or dcmtk is not installed (missing: {missing or 'Orthanc'})")


@pytest.fixture(scope="module")
def engine(tiny_bundle: Path, trust: Trust) -> Engine:
    return engine_of(Predictor(load_bundle(tiny_bundle, trust)))


@dataclass(frozen=True, kw_only=True)
class Pacs:
    """An Orthanc that runs. http: its REST address. port: where it takes DICOM."""

    http: str
    port: int

    def instances(self) -> list[Dataset]:
        """Return all that it holds."""
        names = httpx.get(f"{self.http}/instances").json()
        return [pydicom.dcmread(BytesIO(httpx.get(f"{self.http}/instances/{name}/file").content)) for name in names]


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 25
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory, peers: None) -> Iterator[Pacs]:
    folder = tmp_path_factory.mktemp("orthanc")
    found = Pacs(http=f"http://127.0.0.1:{free_port()}", port=free_port())
    config = {
        "Name": "test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": int(found.http.rpartition(":")[2]),
        "DicomPort": found.port,
        "DicomAet": "PACS",
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowStore": True,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [],
    }
    (folder / "orthanc.json").write_text(json.dumps(config))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(ORTHANC), folder / "orthanc.json"], stdout=log, stderr=log)

    def answers() -> bool:
        assert process.poll() is None, (folder / "log").read_text()[-2000:]
        try:
            return httpx.get(f"{found.http}/system", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(answers, "start of Orthanc")
        yield found
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def service(pacs: Pacs, engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DicomService]:
    settings = DicomSettings(
        port=0,
        callers=("SCANNER",),
        spool=tmp_path_factory.mktemp("spool"),
        send_to=PeerSettings(ae_title="PACS", host="127.0.0.1", port=pacs.port),
        retry_seconds=0.5,
    )
    running = start(settings, lambda: engine)
    yield running
    running.stop()


def write_slice(path: Path) -> Path:
    """Write an MR slice with a head in it, 12 bits, tilted in the patient."""
    gray = np.zeros((120, 100), np.uint16)
    cv2.ellipse(gray, (50, 60), (33, 45), 0, 0, 360, 2600, -1)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.MRImageStorage, "1.2.826.0.1.3680043.8.498.7"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = STUDY, SERIES, f"{SERIES}.1"
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Müller^Jörg", "P-1", "19500101"
    dataset.PatientSex, dataset.Modality, dataset.StudyID, dataset.AccessionNumber = "M", "MR", "1", "A1"
    dataset.StudyDate, dataset.StudyTime, dataset.InstanceNumber, dataset.SeriesNumber = "20260102", "101112", 3, 2
    dataset.ImageType, dataset.PositionReferenceIndicator = ["ORIGINAL", "PRIMARY", "M"], ""
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [-50, -40, 10], [1, 0, 0, 0, 0.8, -0.6]
    dataset.PixelSpacing, dataset.SliceThickness = [0.9, 0.9], 5
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 120, 100, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.WindowCenter, dataset.WindowWidth = 1500, 3000
    dataset["PixelData"] = pydicom.DataElement("PixelData", "OW", gray.tobytes())
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def storescu(service: DicomService, file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert STORESCU is not None
    command = [STORESCU, "-aet", "SCANNER", "-aec", "GLIOFED", *options, "127.0.0.1", str(service.port), str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_an_image_that_storescu_sends_is_answered_in_orthanc(
    service: DicomService, pacs: Pacs, engine: Engine, tmp_path: Path
) -> None:
    echo = [str(ECHOSCU), "-aet", "SCANNER", "-aec", "GLIOFED", "127.0.0.1", str(service.port)]
    subprocess.run(echo, check=True, timeout=20)
    source = write_slice(tmp_path / "slice.dcm")
    for _ in range(2):  # twice the same image: the answer is there once
        sent = storescu(service, source)
        assert sent.returncode == 0, sent.stderr
        until(lambda: len(pacs.instances()) == 3 and not service.desk.undelivered(), "delivery to Orthanc")
    held = {one.SOPClassUID: one for one in pacs.instances()}
    assert set(held) == {uid.SecondaryCaptureImageStorage, uid.ParametricMapStorage, uid.EnhancedSRStorage}
    for one in held.values():
        assert (one.StudyInstanceUID, str(one.PatientName), one.PatientID) == (STUDY, "Müller^Jörg", "P-1")
        assert one.DeviceSerialNumber == engine.identity.digest
    assert len(httpx.get(f"{pacs.http}/studies").json()) == 1
    assert len(httpx.get(f"{pacs.http}/series").json()) == 3
    maps = held[uid.ParametricMapStorage]
    assert maps.NumberOfFrames == 4
    assert np.isfinite(np.frombuffer(maps.FloatPixelData, "<f4")).all()
    assert held[uid.SecondaryCaptureImageStorage].pixel_array.shape[2] == 3

    pydicom.dcmwrite(tmp_path / "report.dcm", held[uid.EnhancedSRStorage])
    told = subprocess.run(["dsrdump", tmp_path / "report.dcm"], capture_output=True, timeout=20, check=True).stdout
    assert b'"Predicted class")=(' in told
    assert b"Research use only" in told


def test_compressed_images_are_taken_as_they_are(service: DicomService, pacs: Pacs, tmp_path: Path) -> None:
    if shutil.which("dcmcjpeg") is None:
        pytest.skip("dcmcjpeg of dcmtk is not installed")
    plain = pydicom.dcmread(write_slice(tmp_path / "plain.dcm"))
    plain.SOPInstanceUID = plain.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.8.498.70"
    pydicom.dcmwrite(tmp_path / "plain.dcm", plain)
    command = ["dcmcjpeg", "+e1", tmp_path / "plain.dcm", tmp_path / "sv1.dcm"]
    subprocess.run(command, check=True, capture_output=True, timeout=20)
    before = len(pacs.instances())
    sent = storescu(service, tmp_path / "sv1.dcm", "-xs")
    assert sent.returncode == 0, sent.stderr
    until(lambda: len(pacs.instances()) == before + 3, "delivery to Orthanc")


def test_storescu_is_told_why_an_image_is_refused(service: DicomService, tmp_path: Path) -> None:
    other = pydicom.dcmread(write_slice(tmp_path / "slice.dcm"))
    other.Modality = "CR"
    pydicom.dcmwrite(tmp_path / "other.dcm", other)
    sent = storescu(service, tmp_path / "other.dcm", "-d")
    assert sent.returncode != 0
    assert "modality is CR" in sent.stdout + sent.stderr
