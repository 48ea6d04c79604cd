"""What the audit log is told of an answer; nothing where no log is kept."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.endpoint.audit import RETRY_SECONDS, AuditUnavailable, EndpointAudit, Facts, Verdict
from service.endpoint.guard import facts_of

if TYPE_CHECKING:
    from export.answer import Answer
    from service.dicom.read import DicomSlices
    from service.endpoint.models import ServedModel
    from service.endpoint.serving import Answered

_INLINE_BYTES = 1 << 20
"""More than that is hashed on a thread: 0.6 ms with a processor's SHA instructions, four times that without."""


def note_answer(answered: Answered) -> None:
    """Fill in what an answer for people was about."""
    facts, answer = facts_of(answered.scope), answered.answer
    if facts is None or answer is None:
        return
    facts.kind, facts.image_sha256 = answered.kind, answered.image_sha256
    facts.study_uid, facts.sop_uid = answered.study_uid, answered.sop_uid
    facts.model = _which(answered.model)
    facts.verdicts = (*facts.verdicts, _verdict(answer))


async def note_tensors(
    scope: Mapping[str, Any],
    model: ServedModel,
    images_NCHW: NDArray[np.float32],
    tensors: Mapping[str, NDArray[Any]],
) -> None:
    """Fill in what an inference request was about: the tensor's hash and, where scores were asked for, the classes."""
    facts = facts_of(scope)
    if facts is None:
        return

    def digest() -> str:
        return hashlib.sha256(images_NCHW.data).hexdigest()

    is_small = images_NCHW.nbytes <= _INLINE_BYTES
    facts.image_sha256 = digest() if is_small else await asyncio.to_thread(digest)
    facts.kind, facts.model = "tensor", _which(model)
    logits_NC = tensors.get("logits", np.empty((0, 1)))
    facts.verdicts = tuple(Verdict(label=model.labels[index]) for index in logits_NC.argmax(axis=1))


class DicomNotes:
    """Writes down what the DICOM side answers, one image after the other on its thread.

    Results wait for their line: while the log cannot be written, nothing is delivered, and images stay in the spool.
    """

    def __init__(self, audit: EndpointAudit | None) -> None:
        self._audit = audit
        self._stopping = threading.Event()
        self._model: ServedModel | None = None
        self._began = 0.0
        self.answers: Sequence[Answer] = ()

    def begin(self, model: ServedModel) -> None:
        """Begin with an image."""
        self._model, self._began, self.answers = model, time.perf_counter(), ()

    def note(self, image_sha256: str, slices: DicomSlices) -> bool:
        """Return whether the image's line is on the disk; False: the endpoint stops before."""
        if self._audit is None or self._model is None:
            return True
        facts = Facts(
            kind="dicom",
            image_sha256=image_sha256,
            study_uid=str(slices.header.get("StudyInstanceUID", "")) or None,
            sop_uid=str(slices.header.get("SOPInstanceUID", "")) or None,
            model=_which(self._model),
            verdicts=tuple(map(_verdict, self.answers)),
        )
        while True:
            milliseconds = (time.perf_counter() - self._began) * 1e3
            entry = self._audit.entry(
                request_id=secrets.token_hex(16),
                client="dicom",
                route="dicom",
                status=200,
                milliseconds=milliseconds,
                facts=facts,
            )
            try:
                self._audit.write_and_wait(entry)
                return True
            except AuditUnavailable:
                if self._stopping.wait(RETRY_SECONDS):
                    return False

    def stop(self) -> None:
        """Wait for the log no longer."""
        self._stopping.set()


def _verdict(answer: Answer) -> Verdict:
    return Verdict(label=answer.label, abstained=answer.abstains, out_of_distribution=answer.out_of_distribution)


def _which(model: ServedModel) -> dict[str, str]:
    return {"name": model.name, "version": model.version, "digest": model.digest, "precision": model.precision}
