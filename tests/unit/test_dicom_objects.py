from __future__ import annotations

import logging
import shutil
import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from export.answer import Answer, Caution
from kernels.spec import Box
from service.dicom.errors import UnreadableDicom
from service.dicom.model import ModelIdentity
from service.dicom.objects import file_bytes, make_objects
from service.dicom.read import read_slices
from service.dicom.settings import DicomLimits

LABELS = ("glioma", "meningioma", "notumor", "pituitary")
MODEL = ModelIdentity(name="gliofed", version="1.2.0", digest="ab" * 32, precision="float32", software="0.1.0")
BRIGHTEST = (3, 7)
TILTED = [0.8, 0.6, 0.0, 0.0, 0.0, -1.0]


def make_answer(**changes: Any) -> Answer:
    """Return an answer about an image of 200 x 160 pixels whose glioma map is brightest in one cell."""
    maps = np.full((4, 10, 10), -0.25, np.float32)
    maps[0, 2:5, 6:9] = 0.5
    maps[0][BRIGHTEST] = 3.0
    values: dict[str, Any] = {
        "label": "glioma",
        "index": 0,
        "labels": LABELS,
        "probabilities_C": np.array([0.7, 0.2, 0.06, 0.04], np.float32),
        "calibrated": True,
        "uncertainty": 0.5,
        "prediction_set": ("glioma", "meningioma"),
        "ood_score": 12.5,
        "ood_threshold": 30.0,
        "out_of_distribution": False,
        "abstains": False,
        "cautions": (Caution(code="phantom_model", text="Trained on phantoms."),),
        "head_found": True,
        "box": Box(20, 30, 180, 150),
        "image_size": (200, 160),
        "class_maps_Chw": maps,
        "cell_pixels": (16.0, 12.0),
    }
    return Answer(**(values | changes))


def make_header(**elements: Any) -> Dataset:
    """Return the header of an MR slice; None deletes."""
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 192"
    header.SOPClassUID, header.SOPInstanceUID = uid.MRImageStorage, "1.2.826.0.1.3680043.8.498.7"
    header.StudyInstanceUID, header.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.5", "1.2.826.0.1.3680043.8.498.6"
    header.FrameOfReferenceUID = "1.2.826.0.1.3680043.8.498.8"
    header.PatientName, header.PatientID, header.PatientSex = "Sørensen", "SECRET-77", "F"
    header.PatientBirthDate, header.StudyDate, header.StudyTime = "19510203", "20260102", "101112"
    header.AccessionNumber, header.StudyID, header.StudyDescription = "ACC9", "S3", "Schädel"
    header.Modality, header.SeriesNumber, header.InstanceNumber = "MR", 4, 12
    header.Rows, header.Columns = 160, 200
    header.ImagePositionPatient, header.ImageOrientationPatient = [-80.0, -60.0, 40.0], TILTED
    header.PixelSpacing, header.SliceThickness = [0.5, 0.75], 5
    for keyword, value in elements.items():
        if value is None:
            del header[keyword]
        else:
            setattr(header, keyword, value)
    return header


def make(header: Dataset | None = None, answer: Answer | None = None, frame: int = 0) -> list[Dataset]:
    """Return the objects as whoever receives them reads them."""
    overlay = np.zeros((160, 200, 3), np.uint8)
    overlay[..., 2] = np.arange(200)  # red in BGR
    made = make_objects(
        header or make_header(),
        frame,
        answer or make_answer(),
        model=MODEL,
        overlay_HWK=overlay,
        remarks=("no window",),
    )
    return [pydicom.dcmread(BytesIO(file_bytes(one))) for one in made]


@pytest.fixture(scope="module")
def made() -> list[Dataset]:
    return make()


def test_three_objects_each_in_a_series_of_its_own(made: list[Dataset]) -> None:
    classes = [uid.SecondaryCaptureImageStorage, uid.ParametricMapStorage, uid.EnhancedSRStorage]
    assert [one.SOPClassUID for one in made] == classes
    assert len({one.SeriesInstanceUID for one in made} | {make_header().SeriesInstanceUID}) == 4
    assert [one.SeriesNumber for one in made] == [4901, 4902, 4903]
    assert {one.InstanceNumber for one in made} == {12}


def test_patient_and_study_are_the_sources(made: list[Dataset]) -> None:
    source = make_header()
    keywords = ["PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate"]
    for keyword in [*keywords, "AccessionNumber", "StudyID", "StudyDescription"]:
        assert [str(one[keyword].value) for one in made] == [str(source[keyword].value)] * 3


def test_identifiers_belong_to_image_and_model(made: list[Dataset]) -> None:
    again, other_image = make(), make(make_header(SOPInstanceUID="1.2.3.4"))
    assert [one.SOPInstanceUID for one in again] == [one.SOPInstanceUID for one in made]
    assert not {one.SOPInstanceUID for one in other_image} & {one.SOPInstanceUID for one in made}
    assert [one.SeriesInstanceUID for one in other_image] == [one.SeriesInstanceUID for one in made]
    for one in made:
        assert uid.UID(one.SOPInstanceUID).is_valid
        assert one.SOPInstanceUID.startswith("2.25.")


@pytest.mark.parametrize("box", [Box(20, 30, 180, 150), None])
@pytest.mark.parametrize("orientation", [TILTED, [1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1]])
def test_the_brightest_cell_lies_where_its_pixels_lie_in_the_patient(box: Box | None, orientation: list[float]) -> None:
    header = make_header(ImageOrientationPatient=orientation)
    cell_pixels = (16.0, 12.0) if box else (20.0, 16.0)
    _, maps, _ = make(header, make_answer(box=box, cell_pixels=cell_pixels))
    pixels = np.frombuffer(maps.FloatPixelData, "<f4").reshape(4, 10, 10)
    groups = maps.PerFrameFunctionalGroupsSequence[0]
    shared = maps.SharedFunctionalGroupsSequence[0]
    to_patient = hd.spatial.PixelToReferenceTransformer(
        image_position=(groups.get("PlanePositionSequence") or shared.PlanePositionSequence)[0].ImagePositionPatient,
        image_orientation=shared.PlaneOrientationSequence[0].ImageOrientationPatient,
        pixel_spacing=shared.PixelMeasuresSequence[0].PixelSpacing,
    )
    row, column = np.unravel_index(np.argmax(pixels[0]), (10, 10))
    assert (row, column) == BRIGHTEST
    found = to_patient(np.array([[column, row]]))[0]

    left, top = (box.left, box.top) if box else (0, 0)
    corners = [
        (left + (column + right) * cell_pixels[0] - 0.5, top + (row + low) * cell_pixels[1] - 0.5)
        for right in (0, 1)
        for low in (0, 1)
    ]
    source = hd.spatial.ImageToReferenceTransformer(header.ImagePositionPatient, orientation, header.PixelSpacing)
    centre = source(np.array(corners) + 0.5).mean(axis=0)  # that transformer counts from a pixel's corner
    assert np.abs(found - centre).max() < 1e-6


def test_the_map_holds_every_class_as_the_graph_gives_it(made: list[Dataset]) -> None:
    maps = made[1]
    pixels = np.frombuffer(maps.FloatPixelData, "<f4").reshape(4, 10, 10)
    assert np.array_equal(pixels, make_answer().class_maps_Chw)
    mappings = [groups.RealWorldValueMappingSequence[0] for groups in maps.PerFrameFunctionalGroupsSequence]
    assert [mapping.LUTLabel for mapping in mappings] == list(LABELS)
    assert {(mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) for mapping in mappings} == {(1.0, 0.0)}
    assert maps.FrameOfReferenceUID == make_header().FrameOfReferenceUID
    assert maps.ContentQualification == "RESEARCH"


def test_the_capture_shows_the_overlay_and_a_caption_below(made: list[Dataset]) -> None:
    capture = made[0]
    pixels = capture.pixel_array
    assert pixels.shape[1] == 600
    assert pixels.shape[0] > 480
    assert np.abs(pixels[:480:3, ::3, 0].astype(int) - np.arange(200)).max() <= 1  # red, enlarged three times
    assert pixels[480:].max() > 200
    assert np.allclose(capture.PixelSpacing, [0.5 / 3, 0.75 / 3])
    assert list(capture.PatientOrientation) == ["LP", "F"]
    assert "glioma: 70.0% (probability)" in capture.ImageComments
    assert "Not for clinical use" in capture.ImageComments
    assert MODEL.digest[:16] in capture.ImageComments


def content_of(report: Dataset) -> hd.sr.MeasurementsAndQualitativeEvaluations:
    read = hd.sr.EnhancedSR.from_dataset(report)
    (group,) = hd.sr.MeasurementReport.from_sequence(read.content).get_image_measurement_groups()
    return group


@pytest.mark.parametrize("said", ["YES", "NO", None])
def test_whether_names_are_burned_in_is_the_source_s_to_say(said: str | None) -> None:
    header = make_header() if said is None else make_header(BurnedInAnnotation=said)
    assert make(header)[0].get("BurnedInAnnotation") == said


def test_the_report_reads_back(made: list[Dataset]) -> None:
    group = content_of(made[2])
    numbers = {item.name.value: item.value for item in group.get_measurements()}
    assert numbers == {
        "p-glioma": pytest.approx(0.7),
        "p-meningioma": pytest.approx(0.2),
        "p-notumor": pytest.approx(0.06),
        "p-pituitary": pytest.approx(0.04),
        "uncertainty": 0.5,
        "ood-score": 12.5,
        "ood-threshold": 30.0,
    }
    evaluations = [item for item in group.get_qualitative_evaluations() if item.name.scheme_designator == "99GLIOFED"]
    told = [(item.name.value, item.value.meaning) for item in evaluations]
    assert told == [
        ("class", "Glioma"),
        ("not-ruled-out", "Glioma"),
        ("not-ruled-out", "Meningioma"),
        ("abstains", "No"),
        ("ood", "No"),
        ("calibrated", "Yes"),
        ("head-found", "Yes"),
    ]
    assert group.source_images[0].referenced_sop_instance_uid == make_header().SOPInstanceUID
    items = group[0].ContentSequence
    texts = [item.TextValue for item in items if item.ValueType == "TEXT"]
    assert {"Research use only. Not for clinical use.", "Trained on phantoms.", "no window"} <= set(texts)
    assert {"gliofed", "1.2.0", f"model SHA-256 {MODEL.digest}"} <= set(texts)
    shown = [item.referenced_sop_instance_uid for item in items if item.ValueType == "IMAGE"]
    assert set(shown[1:]) == {made[0].SOPInstanceUID, made[1].SOPInstanceUID}


def test_doubts_stand_in_report_and_caption() -> None:
    capture, _, report = make(None, make_answer(abstains=True, out_of_distribution=True, head_found=False, box=None))
    told = {item.name.value: item.value.meaning for item in content_of(report).get_qualitative_evaluations()}
    assert (told["abstains"], told["ood"], told["head-found"]) == ("Yes", "Yes", "No")
    doubts = ("OF DRAWN PICTURES, NOT OF PATIENTS", "OUT OF DISTRIBUTION", "NO ANSWER SHOULD BE RELIED ON", "NO HEAD")
    for doubt in doubts:
        assert doubt in capture.ImageComments
    assert "DRAWN" not in make(None, make_answer(cautions=()))[0].ImageComments


@pytest.mark.parametrize("lost", ["ImagePositionPatient", "FrameOfReferenceUID", "PixelSpacing"])
def test_without_a_place_in_the_patient_there_is_no_map_and_the_report_says_so(lost: str) -> None:
    capture, report = make(make_header(**{lost: None}))
    assert (capture.SOPClassUID, report.SOPClassUID) == (uid.SecondaryCaptureImageStorage, uid.EnhancedSRStorage)
    texts = [item.TextValue for item in content_of(report)[0].ContentSequence if item.ValueType == "TEXT"]
    assert any("no parametric map" in text for text in texts)


def test_frames_of_an_enhanced_image_have_places_and_objects_of_their_own() -> None:
    per_frame = []
    for number in range(3):
        position, groups = Dataset(), Dataset()
        position.ImagePositionPatient = [0.0, 0.0, 10.0 * number]
        groups.PlanePositionSequence = Sequence([position])
        per_frame.append(groups)
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = [1, 1], 3
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([orientation]), Sequence([measures])
    header = make_header(
        SOPClassUID=uid.EnhancedMRImageStorage,
        NumberOfFrames=3,
        PerFrameFunctionalGroupsSequence=Sequence(per_frame),
        SharedFunctionalGroupsSequence=Sequence([shared]),
        **dict.fromkeys(["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"]),
    )
    first, third = make(header, frame=0), make(header, frame=2)
    assert not {one.SOPInstanceUID for one in first} & {one.SOPInstanceUID for one in third}
    groups = third[1].PerFrameFunctionalGroupsSequence[0]
    place = (groups.get("PlanePositionSequence") or third[1].SharedFunctionalGroupsSequence[0].PlanePositionSequence)[0]
    assert place.ImagePositionPatient[2] == 20
    image = groups.DerivationImageSequence[0].SourceImageSequence[0]
    assert image.ReferencedFrameNumber == 3
    assert content_of(third[2]).source_images[0].referenced_frame_numbers == [3]


@pytest.mark.parametrize("lost", ["StudyInstanceUID", "SOPInstanceUID", "SeriesInstanceUID"])
def test_an_image_that_results_cannot_be_filed_by_is_refused(lost: str) -> None:
    with pytest.raises(UnreadableDicom, match=f"{lost} is missing"):
        make(make_header(**{lost: None}))


def test_an_anonymous_image_gives_anonymous_objects() -> None:
    names = ["PatientName", "PatientID", "PatientSex", "PatientBirthDate", "StudyDate", "StudyTime", "AccessionNumber"]
    for one in make(make_header(**dict.fromkeys(names))):
        assert [str(one.get(name) or "") for name in names] == [""] * len(names)


def test_a_name_in_no_character_set_is_left_empty_and_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        header = make_header(SpecificCharacterSet="ISO_IR 6", PatientName="Żółw^Ważny")
        assert [str(one.PatientName) for one in make(header)] == ["", "", ""]
    assert "SECRET" not in caplog.text
    assert make_header().SOPInstanceUID not in caplog.text


def test_own_results_are_not_answered(made: list[Dataset]) -> None:
    with pytest.raises(UnreadableDicom, match="result of gliofed"):
        read_slices(file_bytes(made[0]), DicomLimits())


@pytest.mark.parametrize("place", [0, 1, 2])
def test_objects_pass_the_validator(made: list[Dataset], place: int, tmp_path: Path) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy of dicom3tools is not installed")
    (tmp_path / "one.dcm").write_bytes(file_bytes(made[place]))
    done = subprocess.run(["dciodvfy", "-new", tmp_path / "one.dcm"], capture_output=True, timeout=20, check=False)
    errors = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.startswith("Error")]
    assert errors == []


def test_the_report_passes_dcmtks_reader(made: list[Dataset], tmp_path: Path) -> None:
    if shutil.which("dsrdump") is None:
        pytest.skip("dsrdump of dcmtk is not installed")
    (tmp_path / "report.dcm").write_bytes(file_bytes(made[2]))
    done = subprocess.run(["dsrdump", "+Pl", tmp_path / "report.dcm"], capture_output=True, timeout=20, check=True)
    assert b'"Predicted class")=(glioma,99GLIOFED,"Glioma")' in done.stdout
    complaints = [line for line in done.stderr.splitlines() if b"VR check" not in line]  # it checks no UTF-8
    assert complaints == []
