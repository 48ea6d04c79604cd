"""Storage SCP: images come in by C-STORE, C-ECHO is answered."""

from __future__ import annotations

import logging
import select
import time
from typing import Any, NoReturn

from pydicom.dataset import Dataset
from pydicom.uid import JPEGExtended12Bit
from pynetdicom import AE, _config, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import AssociationSocket, ThreadedAssociationServer

from service.dicom.desk import LOG, Desk
from service.dicom.errors import DeliveryError, UnreadableDicom
from service.dicom.header import IMAGE_CLASSES
from service.dicom.pixels import SYNTAXES
from service.dicom.settings import DicomSettings
from service.dicom.spool import SpoolFull

_config.LOG_HANDLER_LEVEL = "none"  # its own log quotes what it takes
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # and has a line for every six bytes of noise

SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
_LONGEST_PDU = 1 << 20
_PIECE_BYTES = 65536
ACCEPTED_SYNTAXES = [syntax for syntax in SYNTAXES if syntax != JPEGExtended12Bit]
"""What is negotiated: of JPEG Extended only 8 bits could be read, so a sender is better asked for another."""


def start_scp(settings: DicomSettings, desk: Desk) -> ThreadedAssociationServer:
    """Listen and return the running server; `shutdown()` ends it. Raises DeliveryError if the port cannot be had."""
    entity = AE(ae_title=settings.ae_title)
    entity.maximum_pdu_size = settings.max_pdu_bytes
    entity.maximum_associations = settings.max_associations
    entity.require_calling_aet = list(settings.callers)
    entity.require_called_aet = True
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = settings.timeout_seconds
    entity.add_supported_context(Verification)
    for sop_class in IMAGE_CLASSES:
        entity.add_supported_context(sop_class, ACCEPTED_SYNTAXES)
    most = settings.limits.max_file_bytes
    handlers: list[Any] = [
        (evt.EVT_CONN_OPEN, _meter, [most, settings.timeout_seconds]),
        (evt.EVT_DIMSE_RECV, _new_message),
        (evt.EVT_C_STORE, _store, [desk]),
    ]
    try:
        server = entity.start_server((settings.host, settings.port), block=False, evt_handlers=handlers)
    except OSError as error:
        raise DeliveryError(
            f"cannot listen on {settings.host}:{settings.port} ({error.strerror}); choose another port or address"
        ) from error
    assert server is not None  # it is None for block=True alone
    return server


def _store(event: Event, desk: Desk) -> int | Dataset:
    try:
        desk.receive(event.encoded_dataset())
    except SpoolFull as error:
        return _refusal(OUT_OF_RESOURCES, str(error))
    except UnreadableDicom as error:
        LOG.warning("image refused: %s", error.reason)
        return _refusal(CANNOT_UNDERSTAND, error.reason)
    return SUCCESS


def _refusal(status: int, reason: str) -> Dataset:
    answer = Dataset()
    answer.Status = status
    answer.ErrorComment = reason.encode("ascii", "replace").decode().replace("\\", "/")[:64]
    return answer


class _Meter:
    """Bounds what one association may send before it has completed a message, and how long a PDU may take to arrive.

    The library itself would go on reading, and wait for the rest of a PDU as long as the peer holds the line. Put in
    the place of the transport's `recv`, it hangs up.
    """

    def __init__(self, transport: AssociationSocket, most: int, seconds: float) -> None:
        self._transport, self._most, self._seconds = transport, most, seconds
        self.received = 0

    def recv(self, num_bytes: int) -> bytearray:
        self.received += num_bytes
        if num_bytes > _LONGEST_PDU or self.received > self._most + _LONGEST_PDU:
            LOG.warning("a peer sent a message past max_file_bytes; hung up")
            self._hang_up()
        data, due = bytearray(), time.monotonic() + self._seconds
        while len(data) < num_bytes and (piece := self._piece(num_bytes - len(data), due)):
            data += piece
        return data

    def _piece(self, most: int, due: float) -> bytes:
        socket: Any = self._transport.socket
        left = due - time.monotonic()
        ready = select.poll()
        ready.register(socket, select.POLLIN)
        if left <= 0 or not ready.poll(left * 1000):
            LOG.warning("a peer did not send the rest of a PDU in time; hung up")
            self._hang_up()
        piece: bytes = socket.recv(min(most, _PIECE_BYTES))
        return piece

    def _hang_up(self) -> NoReturn:
        self._transport.close()
        raise OSError("the peer was hung up on")


def _meter(event: Event, most: int, seconds: float) -> None:
    transport: Any = event.assoc.dul.socket
    transport.recv = _Meter(transport, most, seconds).recv


def _new_message(event: Event) -> None:
    meter = getattr(getattr(event.assoc.dul.socket, "recv", None), "__self__", None)
    if isinstance(meter, _Meter):
        meter.received = 0
