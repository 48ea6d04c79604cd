"""What the routes share: the models, who computes when, and who is told of answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.types import Scope

from export.answer import Answer
from service.endpoint.access import Access
from service.endpoint.audit import open_audit
from service.endpoint.batching import Batcher, Lane, Ticket
from service.endpoint.limits import DEADLINE, Places
from service.endpoint.metrics import Metrics
from service.endpoint.models import Registry, ServedModel
from service.endpoint.noting import note_answer
from service.endpoint.settings import ServeSettings

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Answered:
    """One image was answered, or a tensor of images computed; told to every listener, on the event loop.

    answer: None for tensors, which the client makes sense of itself. image_sha256: of the file as it came. kind:
    "jpeg", "png" or "dicom"; study_uid, sop_uid: of a DICOM object, for the audit log, which keeps salted hashes only.
    scope: the request's, for who asked.
    """

    scope: Scope
    model: ServedModel
    num_images: int
    answer: Answer | None = None
    image_sha256: str | None = None
    kind: str | None = None
    study_uid: str | None = None
    sop_uid: str | None = None


class Serving:
    """One endpoint at work."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.access = Access(settings.access, needs_certificate=settings.needs_certificate)
        self.models = Registry(settings, on_change=lambda _, outcome: self.metrics.reloads.labels(outcome).inc())
        self.places = Places()
        self.num_images: WeakKeyDictionary[ServedModel, int] = WeakKeyDictionary()
        self.listeners: list[Callable[[Answered], None]] = [note_answer]
        self.audit = open_audit(settings.audit)
        self.compute = Lane(settings.max_concurrent, "compute")
        self.codec = Lane(settings.max_concurrent, "codec")
        self.metrics.watch(self.models, self.places, self.compute)
        self.metrics.watch_refusals(self.access.refused)
        batching = settings.batching
        self._tensors: Batcher[NDArray[np.float32], dict[str, NDArray[Any]]] = Batcher(
            self.compute,
            _infer_jointly,
            max_batch=batching.max_batch,
            max_delay_seconds=batching.max_delay_ms / 1e3,
        )
        self._images: Batcher[NDArray[np.uint8], Answer] = Batcher(
            self.compute,
            lambda model, grays: model.predictor.answer(grays),
            max_batch=batching.max_batch,
            max_delay_seconds=batching.max_delay_ms / 1e3,
        )

    async def infer(
        self, model: ServedModel, images_NCHW: NDArray[np.float32], outputs: tuple[str, ...], ticket: Ticket
    ) -> dict[str, NDArray[Any]]:
        """Return the model's outputs for prepared images."""
        if self.settings.batching.max_batch == 1:
            return await self.compute.run(partial(model.infer, images_NCHW, outputs), ticket)
        return await self._tensors.run((model, outputs), images_NCHW, ticket, size=len(images_NCHW))

    async def answer(self, model: ServedModel, gray_HW: NDArray[np.uint8], ticket: Ticket) -> Answer:
        """Return the model's answer for one image."""
        if self.settings.batching.max_batch == 1:
            return (await self.compute.run(partial(model.predictor.answer, [gray_HW]), ticket))[0]
        return await self._images.run(model, gray_HW, ticket)

    async def change(self, call: Callable[[], T]) -> T:
        """Load or unload models, off the event loop; changes queue behind each other."""
        return await asyncio.to_thread(call)

    def tell(self, answered: Answered) -> None:
        """Tell the figures and every listener."""
        self.num_images[answered.model] = self.num_images.get(answered.model, 0) + answered.num_images
        if answered.answer is not None:
            self.metrics.tell(answered.model, answered.answer)
        for listener in self.listeners:
            listener(answered)

    def close(self) -> None:
        """Take no more calls."""
        self.compute.close()
        self.codec.close()
        if self.audit is not None:
            self.audit.close()


def ticket_of(request: Request) -> Ticket:
    """Return the request's claim, once its body has arrived."""
    return Ticket(deadline=request.scope[DEADLINE], is_gone=request.is_disconnected)


def _infer_jointly(
    key: tuple[ServedModel, tuple[str, ...]], images: Sequence[NDArray[np.float32]]
) -> list[dict[str, NDArray[Any]]]:
    """Compute several requests' images in one call; give each its own rows."""
    model, outputs = key
    tensors = model.infer(images[0] if len(images) == 1 else np.concatenate(images), outputs)
    ends = np.cumsum([len(one) for one in images])
    return [
        {name: tensor[end - len(one) : end] for name, tensor in tensors.items()}
        for one, end in zip(images, ends, strict=True)
    ]
