"""`gliofed predict`: what a bundle says of images. Needs neither torch nor Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from export.bundle import load_bundle
from export.heatmap import encode_png
from export.predictor import Precision, Predictor
from export.signing import Trust
from fl.errors import DataError
from kernels.decode import decode_gray
from service.dicom.engine import engine_of
from service.dicom.kind import is_dicom
from service.dicom.model import Engine
from service.dicom.predicting import predict_dicom


def predict_images(
    bundle_folder: Path,
    images: Sequence[Path],
    heatmap: Path | None,
    *,
    trust: Trust,
    precision: Precision = "float32",
    dicom_out: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield an answer for each image, as `Answer.to_json` has it.

    heatmap: where to write the class-activation map of the only image. trust: keys whose bundles are accepted.
    dicom_out: folder for the DICOM objects of answers to DICOM files, which are named after the images: two images of
    one name are refused. Raises UnreadableImage or DataError for an image that cannot be read or a result that cannot
    be written.
    """
    if dicom_out is not None:
        _require_names_of_their_own(images)
    predictor = Predictor(
        load_bundle(bundle_folder, trust), precision=precision, num_threads=len(os.sched_getaffinity(0))
    )
    engine = engine_of(predictor)
    for path in images:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}); give an existing JPEG, PNG or DICOM file"
            ) from error
        with _writing():
            if is_dicom(data):
                answer = predict_dicom(path, data, engine, heatmap=heatmap, dicom_out=dicom_out)
            else:
                answer = _predict_file(path, data, engine, heatmap)
        yield answer


def _require_names_of_their_own(images: Sequence[Path]) -> None:
    """Raise DataError where one image's results would be written over another's."""
    seen: dict[str, Path] = {}
    for path in images:
        if path.stem in seen:
            raise DataError(
                f"{path}: its results would be written over those of {seen[path.stem]}, which has the same name; give "
                "them in calls with folders of their own"
            )
        seen[path.stem] = path


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be written ({error.strerror}); choose another place") from error


def _predict_file(path: Path, data: bytes, engine: Engine, heatmap: Path | None) -> dict[str, Any]:
    gray_HW = decode_gray(data, source=str(path))
    (answer,) = engine.answer([gray_HW])
    if heatmap is not None:
        heatmap.write_bytes(encode_png(engine.draw(gray_HW, answer)))
    return {"image": str(path), **answer.to_json(), "model": engine.identity.digest}
