"""STOW-RS (PS3.18 10.5): images come in by HTTP and go the same way as those that come by C-STORE."""

from __future__ import annotations

from collections.abc import Iterator
from email.message import Message
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from service.dicom.desk import Desk
from service.dicom.errors import UnreadableDicom
from service.dicom.header import text
from service.dicom.parse import parse
from service.dicom.settings import DicomLimits
from service.dicom.spool import SpoolFull

_OUT_OF_RESOURCES, _OTHER_STUDY, _CANNOT_UNDERSTAND = 0xA700, 0xA900, 0xC000
_RETRY_SECONDS = "5"
_MOST_PARTS = 1000
_MEDIA_TYPE = "application/dicom+json"
PREFIX = "/dicom-web"
"""Where the service begins; the audit log knows it by this."""


class _Refused(Exception):
    """A request that is no STOW-RS of ours; answered with this status and text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def stow_router(desk: Desk, limits: DicomLimits) -> APIRouter:
    """Return the routes POST /dicom-web/studies[/{study}]; who may call them is the app's to say.

    A request holds at most `limits.max_file_bytes`, and no more than the app itself lets in. Answers are 200 (all
    kept), 202 (some), 409 (none) with the data set of PS3.18 10.5.3; 503 where none was kept because too many wait;
    400, 411, 413, 415 for other requests. Results go where the SCP's go; the answer does not hold them.
    """
    router = APIRouter(prefix=PREFIX, tags=["DICOM"])

    @router.post("/studies", summary="Store DICOM images to be answered (STOW-RS)")
    async def store(request: Request) -> JSONResponse:
        return await _store(request, desk, limits, None)

    @router.post("/studies/{study}", summary="Store DICOM images of one study to be answered (STOW-RS)")
    async def store_in(study: str, request: Request) -> JSONResponse:
        return await _store(request, desk, limits, study)

    return router


async def _store(request: Request, desk: Desk, limits: DicomLimits, study: str | None) -> JSONResponse:
    try:
        boundary = _boundary(request.headers.get("content-type", ""))
        body = await _body(request, limits.max_file_bytes)
        parts = list(_parts(body, boundary))
    except _Refused as refused:
        return JSONResponse({"error": str(refused)}, refused.status)
    return await run_in_threadpool(_keep_all, parts, desk, limits, study)


def _boundary(content_type: str) -> bytes:
    message = Message()
    message["content-type"] = content_type
    try:
        kind, boundary = str(message.get_param("type") or "").lower(), message.get_param("boundary")
    except (TypeError, ValueError) as error:  # a parameter in pieces (RFC 2231) that do not fit together
        raise _Refused(400, "Content-Type cannot be read; send its boundary in one piece") from error
    if message.get_content_type() != "multipart/related" or kind != "application/dicom":
        raise _Refused(415, 'send multipart/related; type="application/dicom"; boundary=...: one DICOM file a part')
    if not isinstance(boundary, str) or not 1 <= len(boundary) <= 70 or not boundary.isascii():
        raise _Refused(400, "Content-Type has no boundary of 1 to 70 ASCII characters")
    return boundary.encode()


async def _body(request: Request, most: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise _Refused(413, f"request is longer than {most} bytes; send fewer images at a time")
    return bytes(body)


def _parts(body: bytes, boundary: bytes) -> Iterator[bytes]:
    """Yield the content of each part (RFC 2046, 5.1.1)."""
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary)
    if len(pieces) < 3 or not pieces[-1].startswith(b"--"):
        raise _Refused(400, "body holds no complete part between its boundaries; it may be truncated")
    if len(pieces) - 2 > _MOST_PARTS:
        raise _Refused(413, f"body has {len(pieces) - 2} parts; send at most {_MOST_PARTS} images at a time")
    for piece in pieces[1:-1]:
        head, separator, content = piece.partition(b"\r\n\r\n")
        if not separator:
            raise _Refused(400, "a part has no empty line between its header and its content")
        if b"content-type" in head.lower() and b"application/dicom" not in head.lower():
            raise _Refused(415, "a part is not application/dicom; send DICOM files only")
        yield content


def _keep_all(parts: list[bytes], desk: Desk, limits: DicomLimits, study: str | None) -> JSONResponse:
    kept: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    unnamed: list[dict[str, Any]] = []
    reasons: list[str] = []
    full = False
    for data in parts:
        item, of_study = _names(data, limits)
        try:
            if study is not None and item is not None and of_study != study:
                raise _Refused(_OTHER_STUDY, "an image belongs to another study than the address says")
            desk.receive(data)
        except (SpoolFull, UnreadableDicom, _Refused) as error:
            full = full or isinstance(error, SpoolFull)
            reasons.append(str(error))
            reason = _OUT_OF_RESOURCES if isinstance(error, SpoolFull) else getattr(error, "status", _CANNOT_UNDERSTAND)
            (unnamed if item is None else failed).append({**(item or {}), "00081197": {"vr": "US", "Value": [reason]}})
        else:
            kept.append(item or {})
    told: dict[str, Any] = {"00081190": {"vr": "UR"}}
    for tag, items in (("00081199", kept), ("00081198", failed), ("0008119A", unnamed)):
        if items:
            told[tag] = {"vr": "SQ", "Value": items}
    headers = {} if not reasons else {"Warning": f'299 gliofed "{_plain(reasons[0])}"'}
    status = 200 if not reasons else 202 if kept else 409
    if full and not kept:
        status, headers["Retry-After"] = 503, _RETRY_SECONDS
    return JSONResponse(told, status, headers=headers, media_type=_MEDIA_TYPE)


def _names(data: bytes, limits: DicomLimits) -> tuple[dict[str, Any] | None, str]:
    """Return the item that names an object in an answer, None where it cannot be read, and its study."""
    try:
        header = parse(data, limits).header
    except UnreadableDicom:
        return None, ""
    named = (text(header, keyword) for keyword in ("SOPClassUID", "SOPInstanceUID"))
    item = {tag: {"vr": "UI", "Value": [value]} for tag, value in zip(("00081150", "00081155"), named, strict=True)}
    return item, text(header, "StudyInstanceUID")


def _plain(text: str) -> str:
    return text.encode("ascii", "replace").decode().replace('"', "'").replace("\n", " ")[:200]
