"""POST /v1/predict: a file in, an answer for people out. GET /v1/models: who answers."""

from __future__ import annotations

import base64
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from export.answer import Answer
from export.errors import PredictorError
from export.heatmap import encode_png, grad_cam, overlay_heatmap
from service.dicom.settings import DicomLimits
from service.endpoint.body import read_body
from service.endpoint.documents import PREDICT_BODY
from service.endpoint.errors import BadRequest, ModelFault, UnsupportedMedia
from service.endpoint.models import ServedModel
from service.endpoint.replies import json_reply
from service.endpoint.serving import Answered, Serving, ticket_of
from service.endpoint.slices import Slice, read_slice

TAG = "Images"


def add_predict_routes(app: FastAPI, serving: Serving) -> None:
    """Add the routes under /v1."""
    max_bytes = serving.settings.limits.max_body_bytes
    dicom_limits = serving.settings.dicom.limits if serving.settings.dicom else DicomLimits()

    @app.get("/v1/models", tags=[TAG])
    async def served_models() -> Response:
        """What is served: identity, figures, limits and labels of every model that is ready, the default one first."""
        ready = list(serving.models.models)
        default = serving.models.get() if ready else None
        ready.sort(key=lambda model: model is not default)
        return json_reply({"models": [_describe(model) for model in ready]})

    @app.post("/v1/predict", tags=[TAG], openapi_extra=PREDICT_BODY)
    async def predict(
        request: Request,
        *,
        model: Annotated[
            str | None, Query(max_length=64, description="Name; default: the first that is served.")
        ] = None,
        version: Annotated[str | None, Query(max_length=64, description="Version; default: the newest.")] = None,
        frame: Annotated[
            int | None, Query(ge=0, le=1 << 20, description="Frame of a DICOM object, from 0; default: the middle one.")
        ] = None,
        slice: Annotated[bool, Query(description="Also send the grey image that was looked at.")] = False,
        overlay: Annotated[bool, Query(description="Also send it with the class's heat map over it.")] = False,
    ) -> Response:
        """Classify one image: class, calibrated probabilities, cautions and class maps."""
        chosen = serving.models.get(model, version)
        data = await _read_file(serving, request)
        ticket = ticket_of(request)
        seen = await serving.codec.run(lambda: read_slice(data, frame, max_bytes, dicom_limits), ticket)
        try:
            answer = await serving.answer(chosen, seen.gray_HW, ticket)
        except PredictorError as error:
            raise ModelFault(str(error)) from error
        serving.tell(
            Answered(
                scope=request.scope,
                model=chosen,
                num_images=1,
                answer=answer,
                image_sha256=seen.sha256,
                kind=seen.kind,
                study_uid=seen.study_uid,
                sop_uid=seen.sop_uid,
            )
        )
        return await serving.codec.run(
            lambda: json_reply(render(chosen, seen, answer, with_slice=slice, with_overlay=overlay)), ticket
        )


async def _read_file(serving: Serving, request: Request) -> bytes | memoryview:
    """Return the file: the part `file` of a form, or the whole body."""
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() == "multipart/form-data":
        return await _read_form(request, serving.settings.limits.max_body_bytes)
    headers = dict(request.scope["headers"])
    body = await read_body(request.receive, headers, max_bytes=serving.settings.limits.max_body_bytes)
    if not body:
        raise BadRequest("the body is empty; send a JPEG, PNG or DICOM file, as it is or as `file` of a form")
    return body


async def _read_form(request: Request, max_bytes: int) -> bytes:
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("a form with Content-Encoding is not read; send it as it is")
    parser = MultiPartParser(request.headers, request.stream(), max_files=1, max_fields=8)
    parser.spool_max_size = max_bytes  # a patient's image never reaches a disk
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError, KeyError) as error:
        raise BadRequest(f"the form cannot be read ({type(error).__name__}); send one part `file`") from error
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise BadRequest("the form has no file in a part named `file`")
        data = await file.read()
    finally:
        await form.close()
    if not data:
        raise BadRequest("`file` of the form is empty; send a JPEG, PNG or DICOM file")
    return data


def render(model: ServedModel, seen: Slice, answer: Answer, *, with_slice: bool, with_overlay: bool) -> dict[str, Any]:
    """Return the whole answer as JSON."""
    maps_Chw = answer.class_maps_Chw
    body = {
        "model": model.identity(),
        **answer.to_json(),
        "image": {
            "sha256": seen.sha256,
            "kind": seen.kind,
            "frame": seen.frame,
            "num_frames": seen.num_frames,
            "remarks": list(seen.remarks),
        },
        "heatmap": {
            "shape": list(maps_Chw.shape[1:]),
            "maps": {name: map_hw.tolist() for name, map_hw in zip(answer.labels, maps_Chw, strict=True)},
            "cell_pixels": list(answer.cell_pixels),
            "box": None if answer.box is None else list(answer.box),
        },
    }
    if with_slice:
        body["slice_png"] = base64.b64encode(encode_png(seen.gray_HW)).decode()
    if with_overlay:
        size = model.predictor.bundle.preprocess.size
        cam_hw = grad_cam(maps_Chw, answer.index)
        picture_HWK = overlay_heatmap(seen.gray_HW, cam_hw, answer.box, image_size=size)
        body["overlay_png"] = base64.b64encode(encode_png(picture_HWK)).decode()
    return body


def _describe(model: ServedModel) -> dict[str, Any]:
    """Return what a person should know of a model before asking it."""
    bundle = model.predictor.bundle
    said = {key: bundle.metadata.get(key) for key in ("task", "intended_use", "limits")}
    return model.identity() | said | {"input_size": bundle.preprocess.size, "metrics": dict(bundle.metrics)}
