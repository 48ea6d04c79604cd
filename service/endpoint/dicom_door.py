"""DICOM beside HTTP: the C-STORE SCP and STOW-RS, open once the models are ready."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray

from export.answer import Answer
from service.dicom.settings import DicomSettings
from service.endpoint.errors import EndpointError
from service.endpoint.models import ServedModel
from service.endpoint.noting import DicomNotes
from service.endpoint.serving import Serving

RETRY_SECONDS = 1.0

_log = logging.getLogger("gliofed.endpoint")


@asynccontextmanager
async def dicom_door(app: FastAPI, serving: Serving, settings: DicomSettings) -> AsyncIterator[None]:
    """Open the door and close it. Answers come from the default model, whichever that is at the time.

    Raises DeliveryError where the spool or the port cannot be used.
    """
    from service.dicom.engine import engine_of  # with pydicom and pynetdicom, which only this door needs
    from service.dicom.model import Engine
    from service.dicom.run import start
    from service.dicom.stow import stow_router

    noting = DicomNotes(serving.audit)

    stopping = threading.Event()

    def default_model() -> ServedModel | None:
        """Return the model, waited for while it is out of service: the image was accepted, and must not be lost."""
        while True:
            try:
                return serving.models.get()
            except EndpointError:
                if stopping.wait(RETRY_SECONDS):
                    return None

    def engine() -> Engine | None:
        if (model := default_model()) is None:
            return None
        plain = engine_of(model.predictor, name=model.name, model_version=model.version)

        def answer(grays: Sequence[NDArray[np.uint8]]) -> list[Answer]:
            noting.begin(model)
            answers = plain.answer(grays)
            noting.answers = answers
            for one in answers:
                serving.metrics.tell(model, one)
            return answers

        return replace(plain, answer=answer)

    service = await asyncio.to_thread(start, settings, engine, noting.note)
    serving.metrics.watch_dicom(service.desk.undelivered, service.desk.given_up)
    app.include_router(stow_router(service.desk, settings.limits))
    _log.info("listening for DICOM", extra={"facts": {"port": service.port}})
    try:
        yield
    finally:
        stopping.set()
        noting.stop()
        await asyncio.to_thread(service.stop)
