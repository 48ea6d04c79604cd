"""What the OpenAPI schema says of bodies that FastAPI does not read itself."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field

from service.endpoint.access import Forbidden, TooManyWrongKeys, Unauthorized
from service.endpoint.errors import (
    BadRequest,
    Busy,
    Conflict,
    EndpointError,
    NotFound,
    TooLarge,
    TooLate,
    TooSlow,
    UnsupportedMedia,
)


class ErrorBody(BaseModel):
    """Every refusal's body."""

    error: str = Field(description="What was given, what was expected, what to do.")


_REFUSALS: tuple[type[EndpointError], ...] = (
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    TooSlow,
    Conflict,
    TooLarge,
    UnsupportedMedia,
    TooManyWrongKeys,
    Busy,
    TooLate,
)

ERRORS: dict[int | str, dict[str, Any]] = {
    kind.status: {"model": ErrorBody, "description": (kind.__doc__ or "").partition("\n")[0]} for kind in _REFUSALS
}
"""The refusals of any route, by status."""

_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {"type": ["string", "number", "boolean"]},
}
_TENSOR: dict[str, Any] = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}},
        "datatype": {"type": "string", "examples": ["FP32"]},
        "parameters": _PARAMETERS,
        "data": {"type": "array", "description": "Row-major numbers, flat or nested; or see binary_data_size."},
    },
}
_OUTPUT: dict[str, Any] = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string"}, "parameters": _PARAMETERS},
}
_INFER: dict[str, Any] = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": _PARAMETERS,
        "inputs": {"type": "array", "minItems": 1, "items": _TENSOR},
        "outputs": {"type": "array", "items": _OUTPUT},
    },
}
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}

INFER_BODY: dict[str, Any] = {
    "parameters": [
        {
            "name": "Inference-Header-Content-Length",
            "in": "header",
            "required": False,
            "schema": {"type": "integer", "minimum": 0},
            "description": "Bytes of JSON before the binary tensors.",
        }
    ],
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": _INFER}, "application/octet-stream": _BINARY},
    },
}
REPOSITORY_BODY: dict[str, Any] = {
    "requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}},
}
PREDICT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A JPEG, PNG or DICOM file: as the body, or as `file` of a form.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
            "image/jpeg": _BINARY,
            "image/png": _BINARY,
            "application/dicom": _BINARY,
            "application/octet-stream": _BINARY,
        },
    }
}


def document(app: FastAPI) -> dict[str, Any]:
    """Return the app's OpenAPI schema; requests that do not validate are 400 here, so FastAPI's 422 is taken out."""
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for operations in schema["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)
    return schema
