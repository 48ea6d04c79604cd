"""What results take over from the image they are about: whose it is, where it belongs, where it lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.charset import convert_encodings
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import UID, MRImageStorage

from service.dicom.errors import UnreadableDicom
from service.dicom.header import integer, text
from service.dicom.windows import macro

_PATIENT_AND_STUDY = (
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Plane:
    """Where a frame lies in the patient (PS3.3 C.7.6.2.1.1), millimetres.

    position: of the centre of the first pixel. along_row, along_column: unit vectors of growing column and growing row
    index. row_spacing, column_spacing: between rows, between columns. thickness: of the slice;
    a pixel's larger side where the image does not say it.
    """

    frame_of_reference: str
    position: NDArray[np.float64]
    along_row: NDArray[np.float64]
    along_column: NDArray[np.float64]
    row_spacing: float
    column_spacing: float
    thickness: float

    def at(self, x: float, y: float) -> NDArray[np.float64]:
        """Return the place of a point in pixel coordinates, where (0, 0) is the centre of the first pixel."""
        place: NDArray[np.float64] = (
            self.position + self.along_row * (x * self.column_spacing) + self.along_column * (y * self.row_spacing)
        )
        return place


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Source:
    """One frame of an image that was answered. frame: from 0; None for images that have but one and no numbering.

    plane: None where the image does not say where it lies. spacing: between rows and columns, None where not said.
    """

    header: Dataset
    sop_class: str
    sop_instance: str
    study: str
    series: str
    series_number: int
    number: int
    frame: int | None
    plane: Plane | None
    spacing: tuple[float, float] | None


def source_of(header: Dataset, frame: int) -> Source:
    """Return what results need of an image's header. Raises UnreadableDicom where they could not be filed."""
    try:
        return _source_of(header, frame)
    except UnreadableDicom:
        raise
    except Exception as error:  # values are converted as they are asked for, by pydicom
        raise UnreadableDicom(
            f"an element that results need cannot be understood ({type(error).__name__}); the file is damaged, copy it "
            f"again"
        ) from error


def _source_of(header: Dataset, frame: int) -> Source:
    named = {}
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        named[keyword] = UID(text(header, keyword))
        if not named[keyword] or not named[keyword].is_valid:
            raise UnreadableDicom(f"{keyword} is missing or no UID; results could not be filed beside the image")
    multi = "NumberOfFrames" in header
    number = frame + 1 if multi else integer(header, "InstanceNumber", 1)
    return Source(
        header=header,
        sop_class=str(named["SOPClassUID"]),
        sop_instance=str(named["SOPInstanceUID"]),
        study=str(named["StudyInstanceUID"]),
        series=str(named["SeriesInstanceUID"]),
        series_number=integer(header, "SeriesNumber", 0),
        number=number,
        frame=frame if multi else None,
        plane=_plane(header, frame),
        spacing=_spacing(header, frame),
    )


def reference(source: Source) -> Dataset:
    """Return a stand-in for the image that names no patient, for building results beside it.

    The library that builds them warns about odd names by quoting them; whose they are is written by `belong_to` later.
    """
    stand_in = Dataset()
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        setattr(stand_in, keyword, "")
    stand_in.StudyDate, stand_in.StudyTime, stand_in.ReferringPhysicianName = "", "", ""
    # a multi-frame class would be asked for functional groups; `belong_to` names the image's own
    stand_in.SOPClassUID, stand_in.SOPInstanceUID = MRImageStorage, source.sop_instance
    stand_in.StudyInstanceUID, stand_in.SeriesInstanceUID = source.study, source.series
    stand_in.Modality, stand_in.Rows, stand_in.Columns = "MR", source.header.Rows, source.header.Columns
    if source.plane is not None:
        plane = source.plane
        stand_in.FrameOfReferenceUID, stand_in.PositionReferenceIndicator = plane.frame_of_reference, ""
        stand_in.ImagePositionPatient = decimals(*plane.position)
        stand_in.ImageOrientationPatient = decimals(*plane.along_row, *plane.along_column)
        stand_in.PixelSpacing = decimals(plane.row_spacing, plane.column_spacing)
        stand_in.SliceThickness = plane.thickness
    return stand_in


def decimals(*values: float) -> list[float]:
    """Return numbers that fit a decimal string's 16 characters: ten digits, far finer than any scanner."""
    return [float(f"{value:.9e}") if abs(value) >= 1e-6 else 0.0 for value in values]


def belong_to(result: Dataset, source: Source) -> None:
    """Copy patient and study of the source into a result, elements that cannot be written left empty."""
    if "SpecificCharacterSet" in result:
        del result.SpecificCharacterSet
    encodings = convert_encodings(source.header.get("SpecificCharacterSet"))
    for keyword in _PATIENT_AND_STUDY:
        if keyword not in source.header:
            continue
        element = source.header[keyword]
        value = element.value if _writable(element, encodings) else ""
        result[keyword] = DataElement(element.tag, element.VR, value, already_converted=True)
    result.StudyInstanceUID = source.study
    _name_source(result, source)


def _writable(element: DataElement, encodings: Sequence[str]) -> bool:
    """Tell whether text can be written in the image's own character set; a wrongly declared one cannot."""
    if element.VR not in {"PN", "LO", "SH"}:
        return True
    return all(any(_encodes(letter, name) for name in encodings) for letter in str(element.value or ""))


def _encodes(letter: str, encoding: str) -> bool:
    try:
        letter.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return letter != "\ufffd"  # what a reader puts for bytes that it could not decode


def _name_source(result: Dataset, source: Source) -> None:
    """Correct the class by which references to the source call it."""
    for element in result:
        if element.VR != "SQ":
            continue
        for item in element.value:
            if item.get("ReferencedSOPInstanceUID") == source.sop_instance:
                item.ReferencedSOPClassUID = source.sop_class
            _name_source(item, source)


def _plane(header: Dataset, frame: int) -> Plane | None:
    positions, orientations = (
        macro(header, frame, f"Plane{kind}Sequence") or header for kind in ("Position", "Orientation")
    )
    measures = macro(header, frame, "PixelMeasuresSequence") or header
    position = _numbers(positions, "ImagePositionPatient", 3)
    axes = _numbers(orientations, "ImageOrientationPatient", 6)
    spacing = _spacing(header, frame)
    frame_of_reference = str(header.get("FrameOfReferenceUID", "") or "")
    if position is None or axes is None or spacing is None or not UID(frame_of_reference).is_valid:
        return None
    along_row, along_column = axes[:3], axes[3:]
    orthonormal = np.array([along_row @ along_row, along_column @ along_column, along_row @ along_column])
    if not frame_of_reference or not np.allclose(orthonormal, [1, 1, 0], atol=1e-2):
        return None
    thickness = _numbers(measures, "SliceThickness", 1)
    return Plane(
        frame_of_reference=frame_of_reference,
        position=position,
        along_row=along_row / np.linalg.norm(along_row),
        along_column=along_column / np.linalg.norm(along_column),
        row_spacing=spacing[0],
        column_spacing=spacing[1],
        thickness=float(thickness[0]) if thickness is not None and thickness[0] > 0 else max(spacing),
    )


def _spacing(header: Dataset, frame: int) -> tuple[float, float] | None:
    found = _numbers(macro(header, frame, "PixelMeasuresSequence") or header, "PixelSpacing", 2)
    return None if found is None or min(found) <= 0 else (float(found[0]), float(found[1]))


def _numbers(item: Dataset, keyword: str, count: int) -> NDArray[np.float64] | None:
    value = item.get(keyword)
    if value is None or value == "":
        return None
    try:
        found = np.array([float(part) for part in (value if count > 1 else [value])])
    except (TypeError, ValueError):
        return None
    return found if len(found) == count and all(math.isfinite(part) for part in found) else None
