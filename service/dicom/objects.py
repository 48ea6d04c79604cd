"""An answer as DICOM objects beside the image it is about: Secondary Capture, Parametric Map, structured report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedSRStorage, ParametricMapStorage, SecondaryCaptureImageStorage

from export.answer import Answer
from service.dicom.capture import secondary_capture
from service.dicom.header import MANUFACTURER
from service.dicom.model import Engine, ModelIdentity, derived_uid
from service.dicom.parametric_map import parametric_map
from service.dicom.read import DicomSlices
from service.dicom.report import SCHEME, structured_report
from service.dicom.source import Source, belong_to, reference, source_of

logging.getLogger("highdicom").setLevel(logging.WARNING)  # below, it logs the identifiers of what it copies from

_SERIES = {"sc": (1, "gliofed overlay"), "pm": (2, "gliofed class maps"), "sr": (3, "gliofed report")}
_MAX_SERIES_NUMBER = 2**31 - 1


def make_objects(
    header: Dataset,
    frame: int,
    answer: Answer,
    *,
    model: ModelIdentity,
    overlay_HWK: NDArray[np.uint8],
    remarks: Sequence[str] = (),
) -> list[Dataset]:
    """Return the objects for one answered frame: Secondary Capture, Parametric Map, report, in this order.

    header: the image's, without pixel data. frame: from 0. overlay_HWK: uint8 BGR of the frame's size. The map is left
    out, and the report says so, where the image does not say where it lies in the patient. The same image and model
    give the same UIDs; series are one for each kind, of a source series and a model. Raises UnreadableDicom where the
    image has no UIDs to file results by.
    """
    source = source_of(header, frame)
    stand_in = reference(source)
    texts = list(remarks)
    made = [
        secondary_capture(
            source,
            stand_in,
            answer,
            model=model,
            overlay_HWK=overlay_HWK,
            identifiers=_identifiers("sc", source, model),
        )
    ]
    if source.plane is None:
        texts.append("The image does not say where it lies in the patient; there is no parametric map.")
    else:
        made.append(parametric_map(source, source.plane, stand_in, answer, _identifiers("pm", source, model)))
    report_identifiers = _identifiers("sr", source, model)
    made.append(
        structured_report(
            source,
            stand_in,
            answer,
            model=model,
            results=made,
            remarks=texts,
            identifiers=report_identifiers,
        )
    )
    for result in made:
        belong_to(result, source)
        result.BodyPartExamined = "BRAIN"
    return made


def answer_slices(slices: DicomSlices, engine: Engine) -> list[Dataset]:
    """Let a model answer every frame that was read; return all results' objects, frame by frame."""
    answers = engine.answer(slices.grays)
    return [
        made
        for frame, gray_HW, answer in zip(slices.frames, slices.grays, answers, strict=True)
        for made in make_objects(
            slices.header,
            frame,
            answer,
            model=engine.identity,
            overlay_HWK=engine.draw(gray_HW, answer),
            remarks=slices.remarks,
        )
    ]


def kind_of(result: Dataset) -> str:
    """Return what a result is called in file names: overlay, maps or report."""
    kinds = {SecondaryCaptureImageStorage: "overlay", ParametricMapStorage: "maps", EnhancedSRStorage: "report"}
    return kinds[result.SOPClassUID]


def file_bytes(result: Dataset) -> bytes:
    """Return an object as a DICOM file."""
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, result, enforce_file_format=True)
    return buffer.getvalue()


def _identifiers(kind: str, source: Source, model: ModelIdentity) -> dict[str, Any]:
    offset, description = _SERIES[kind]
    by = (model.digest, model.precision, model.software)
    number = source.series_number * 1000 + 900 + offset
    found: dict[str, Any] = {
        "series_instance_uid": derived_uid("series", kind, source.series, *by),
        "series_number": number if 0 < number <= _MAX_SERIES_NUMBER else 900 + offset,
        "sop_instance_uid": derived_uid("instance", kind, source.sop_instance, source.frame, *by),
        "instance_number": source.number,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": model.name[:64],
        "software_versions": (model.software, model.version),
        "device_serial_number": model.digest[:64],
        "series_description": f"{description}, research only",
    }
    if kind == "sr":
        found["coding_schemes"] = [
            CodingSchemeIdentificationItem(designator=SCHEME, name="gliofed", responsible_organization="gliofed")
        ]
    return found
