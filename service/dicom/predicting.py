"""`gliofed predict` on DICOM files: the answer as JSON, and its objects in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.heatmap import encode_png
from fl.durable import write_file
from fl.errors import DataError
from service.dicom.errors import UnreadableDicom
from service.dicom.model import Engine
from service.dicom.objects import file_bytes, kind_of, make_objects
from service.dicom.read import read_slices
from service.dicom.settings import DicomLimits


def predict_dicom(
    path: Path, data: bytes, engine: Engine, *, heatmap: Path | None, dicom_out: Path | None
) -> dict[str, Any]:
    """Return the answer for a DICOM file's middle frame; it names no patient.

    heatmap: where to write the overlay as PNG. dicom_out: folder for the answer's DICOM objects. Raises DataError.
    """
    try:
        slices = read_slices(data, DicomLimits())
        (answer,) = engine.answer(slices.grays)
        overlay_HWK = engine.draw(slices.grays[0], answer)
        if heatmap is not None:
            heatmap.write_bytes(encode_png(overlay_HWK))
        if dicom_out is not None:
            made = make_objects(
                slices.header,
                slices.frames[0],
                answer,
                model=engine.identity,
                overlay_HWK=overlay_HWK,
                remarks=slices.remarks,
            )
            dicom_out.mkdir(parents=True, exist_ok=True)
            for one in made:
                write_file(dicom_out / f"{path.stem}-{kind_of(one)}.dcm", file_bytes(one))
    except UnreadableDicom as error:
        raise DataError(f"{path}: {error.reason}") from error
    return {
        "image": str(path),
        **answer.to_json(),
        "model": engine.identity.digest,
        "frame": slices.frames[0],
        "num_frames": slices.num_frames,
        "window": slices.windows[0],
        "remarks": list(slices.remarks),
    }
