"""The endpoint's audit log: one line for each answer, without patient data, in a hash-chained file.

Study and image are named by HMAC-SHA256 under a secret salt that lies beside the log: whoever holds the image and the
salt finds its lines, and nobody else learns anything. An answer that is waited for (`write`) leaves once its line is on
the disk: a crash loses none of these. Answers to inference requests (`write_soon`) do not wait: a crash or a power cut
loses at most those of the last `flush_seconds`. Lines that come together share one fsync. Where the log cannot be
written, answers are refused until it can; lines of answers that have left are kept for then.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import secrets
import stat
import threading
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from fl.audit_chain import ChainedLog
from fl.durable import fsync_folder, write_secret
from fl.errors import AuditLogError
from service.endpoint.errors import Busy

MAX_WAITING = 4096
"""Lines in memory at most; more means that the disk has stopped."""

SALT_NAME = "audit.salt"
"""Beside the log; logs of one folder share it, so that an image has one name in all of them."""

WRITE_TIMEOUT_SECONDS = 5.0
RETRY_SECONDS = 1.0
_SALT_BYTES = 32

_LOG = logging.getLogger("gliofed.audit")


class AuditSettings(BaseModel):
    """Where answers are written down."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path | None = Field(None, description="The audit log; its salt lies beside it. null: none is kept.")
    max_bytes: int = Field(
        16 << 20, ge=4096, le=1 << 30, description="Size after which a file is set aside and the next one begun."
    )
    flush_seconds: float = Field(
        0.2, gt=0, le=60, description="Longest that an inference request's line waits for the disk."
    )


class AuditUnavailable(Busy):
    """No answer may leave, because it cannot be written down."""

    def __init__(self) -> None:
        # the cause may name paths of the server; it is in the server's own log
        super().__init__("the audit log cannot be written, so no answer is given", retry_after_seconds=5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What one image was answered. abstained, out_of_distribution: None where only scores were asked for."""

    label: str
    abstained: bool | None = None
    out_of_distribution: bool | None = None


@dataclass(kw_only=True, slots=True)
class Facts:
    """What a handler knows about its request; filled in on the way, written down when the answer is about to leave.

    kind: "jpeg", "png", "dicom" or "tensor". image_sha256: of the bytes that came; only a salted hash of it is kept.
    model: name, version, digest and precision of what answered.
    """

    kind: str | None = None
    image_sha256: str | None = None
    study_uid: str | None = None
    sop_uid: str | None = None
    model: dict[str, str] = field(default_factory=dict)
    verdicts: Sequence[Verdict] = ()


@dataclass(frozen=True, slots=True)
class _Line:
    entry: dict[str, Any]
    done: Future[None] | None


class EndpointAudit:
    """The log, written by a thread of its own. Use as a context manager; any thread may hand in lines."""

    def __init__(self, path: Path, *, max_bytes: int, flush_seconds: float) -> None:
        """Open the log and its salt. Raises AuditLogError where either cannot be used."""
        self._path, self._max_bytes, self._flush_seconds = path, max_bytes, flush_seconds
        self._salt = _salt(path.with_name(SALT_NAME))
        self._log = ChainedLog(path, max_bytes=max_bytes)
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._waiting: list[_Line] = []
        self._failed_at: datetime | None = None
        self._failure: AuditLogError | None = None
        self._num_refused = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._log.note("started", salt_id=hashlib.sha256(self._salt).hexdigest()[:16])
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def head(self) -> str:
        """Digest of the last line on the disk; note it elsewhere, so that a log cut short shows."""
        return self._log.head

    @property
    def failure(self) -> AuditLogError | None:
        """Why lines cannot be written at the moment; None: they can."""
        return self._failure

    def require_writable(self) -> None:
        """Raise AuditUnavailable where an answer could not be written down: then it need not be computed."""
        with self._lock:
            self._require_writable()

    async def write(self, entry: dict[str, Any]) -> None:
        """Return once the line is on the disk. Raises AuditUnavailable; then the answer must not leave."""
        done: Future[None] = Future()
        self._hand_in(_Line(entry, done))
        try:
            await asyncio.wait_for(asyncio.wrap_future(done), WRITE_TIMEOUT_SECONDS)
        except (TimeoutError, AuditLogError) as error:
            raise AuditUnavailable from error

    def write_and_wait(self, entry: dict[str, Any]) -> None:
        """Do what `write` does, on a thread that may wait."""
        done: Future[None] = Future()
        self._hand_in(_Line(entry, done))
        try:
            done.result(WRITE_TIMEOUT_SECONDS)
        except (TimeoutError, AuditLogError) as error:
            raise AuditUnavailable from error

    def write_soon(self, entry: dict[str, Any]) -> None:
        """Have the line written within `flush_seconds`. Raises AuditUnavailable; then the answer must not leave."""
        self._hand_in(_Line(entry, None))

    def entry(
        self, *, request_id: str, client: str, route: str, status: int, milliseconds: float, facts: Facts
    ) -> dict[str, Any]:
        """Return the line of one answer; it takes no time."""
        return {
            "event": "answered",
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request": request_id,
            "client": client,
            "route": route,
            "kind": facts.kind,
            "study": self._salted("study", facts.study_uid),
            "sop_instance": self._salted("sop instance", facts.sop_uid),
            "image": self._salted("image", facts.image_sha256),
            "model": facts.model or None,
            "answers": [
                {"label": verdict.label, "abstained": verdict.abstained, "ood": verdict.out_of_distribution}
                for verdict in facts.verdicts
            ],
            "status": status,
            "milliseconds": round(milliseconds, 2),
        }

    def close(self) -> None:
        """Write what is waiting, and a last line; a second call does nothing."""
        with self._lock:
            self._closing = True
        self._wake.set()
        self._thread.join()
        self._log.close()

    def _salted(self, what: str, value: str | None) -> str | None:
        return None if value is None else salted_hash(self._salt, what, value)

    def _hand_in(self, line: _Line) -> None:
        with self._lock:
            self._require_writable()
            self._waiting.append(line)
        if line.done is not None:
            self._wake.set()  # the others are taken along, or come with the next flush: waking a thread costs CPU time

    def _require_writable(self) -> None:
        if self._failure is not None or self._closing or len(self._waiting) >= MAX_WAITING:
            self._num_refused += 1
            raise AuditUnavailable

    def _run(self) -> None:
        while True:
            self._wake.wait(self._flush_seconds if self._failure is None else RETRY_SECONDS)
            self._wake.clear()
            with self._lock:
                lines, self._waiting = self._waiting, []
                closing = self._closing
            self._write_lines(lines, closing=closing)
            if closing:
                return

    def _write_lines(self, lines: Sequence[_Line], *, closing: bool) -> None:
        entries = [line.entry for line in lines]
        if closing:
            entries.append({"event": "stopped"})
        try:
            if self._failure is not None:
                self._reopen()
            if entries:
                self._log.append(entries)
        except AuditLogError as error:
            self._fail(lines, error)
            return
        for line in lines:
            _settle(line.done, None)

    def _fail(self, lines: Sequence[_Line], error: AuditLogError) -> None:
        """Refuse answers from now on. Those that wait for their line are refused; the others have left: keep theirs."""
        if self._failure is None:
            _LOG.error("audit log failed, no answer is given", extra={"facts": {"reason": str(error)}})
        with self._lock:
            self._failure = error
            self._failed_at = self._failed_at or datetime.now(UTC)
            self._num_refused += sum(line.done is not None for line in lines)
            self._waiting = [line for line in lines if line.done is None] + self._waiting
        for line in lines:
            _settle(line.done, error)

    def _reopen(self) -> None:
        """Open the log again, which looks at what the disk kept, and say in it how long it was closed."""
        self._log.close()
        self._log = ChainedLog(self._path, max_bytes=self._max_bytes)
        with self._lock:
            since, refused = self._failed_at, self._num_refused
        self._log.note("resumed", failed_at=None if since is None else since.isoformat(), refused=refused)
        with self._lock:
            self._failure, self._failed_at, self._num_refused = None, None, self._num_refused - refused
        _LOG.info("audit log resumed", extra={"facts": {"refused": refused}})


def open_audit(settings: AuditSettings) -> EndpointAudit | None:
    """Return the log of these settings, open; None where they name none. Raises AuditLogError, as `EndpointAudit`."""
    if settings.path is None:
        return None
    return EndpointAudit(settings.path, max_bytes=settings.max_bytes, flush_seconds=settings.flush_seconds)


def salted_hash(salt: bytes, what: str, value: str) -> str:
    """Return the HMAC-SHA256 that stands in the log for a value. what: "study", "sop instance" or "image".

    value: a UID, or the SHA-256 of an image's bytes in hexadecimal.
    """
    return hmac.new(salt, f"{what}\0{value}".encode(), hashlib.sha256).hexdigest()


def read_salt(path: Path) -> bytes:
    """Return the salt of a file. Raises AuditLogError where it is missing, damaged or readable by others."""
    try:
        salt, mode = path.read_bytes(), stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise AuditLogError(f"{path}: the audit log's salt cannot be read ({error.strerror})") from error
    if mode & 0o077:
        raise AuditLogError(f"{path}: others may read the audit log's salt (mode {mode:03o}); chmod 600 it")
    if len(salt) != _SALT_BYTES:
        raise AuditLogError(f"{path}: is no salt of an audit log: {len(salt)} bytes, expected {_SALT_BYTES}")
    return salt


def _salt(path: Path) -> bytes:
    """Return the salt, which is made when there is none yet; of several that begin at once, one makes it."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_secret(fresh, secrets.token_bytes(_SALT_BYTES))
            with suppress(FileExistsError):
                os.link(fresh, path)
            fresh.unlink()
            fsync_folder(path.parent)
    except OSError as error:
        raise AuditLogError(f"{path}: the audit log's salt cannot be made ({error.strerror})") from error
    return read_salt(path)


def _settle(done: Future[None] | None, error: AuditLogError | None) -> None:
    if done is None:
        return
    try:
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)
    except InvalidStateError:
        pass  # whoever waited has gone
