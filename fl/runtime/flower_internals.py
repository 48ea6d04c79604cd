"""Every name of flwr 1.41 that its documentation does not promise, in this one file.

flwr is pinned to one version, and `tests/unit/test_flower_contract.py` holds each of these to what is needed of it, so
that a new version is taken up here or not at all.
"""

from __future__ import annotations

import io
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from flwr.app import Array, Context, Message, MessageType, RecordDict
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode, SType
from flwr.serverapp.exception import AggregationError, InconsistentMessageReplies
from flwr.supercore.differential_privacy import KEY_CLIPPING_NORM, KEY_NORM_BIT
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from fl.errors import ProtocolError

FLWR_VERSION = "1.41"
"""Of which the names below are."""

SITE_RAISED = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
SITE_UNAVAILABLE = ErrorCode.NODE_UNAVAILABLE
REPLY_UNAVAILABLE = ErrorCode.REPLY_MESSAGE_UNAVAILABLE
CLIPPING_NORM = KEY_CLIPPING_NORM
"""Where client-side clipping is told its norm, in the task's config."""

NORM_BIT = KEY_NORM_BIT
"""Where adaptive clipping says whether it clipped, in the reply's metrics."""

STRATEGY_FAULTS = (AggregationError, InconsistentMessageReplies)
"""What a strategy raises where it cannot aggregate."""

FlowerRun = Run
"""Flower's description of a run."""

CLIPPING_MODS = {"fixed": fixedclipping_mod, "adaptive": adaptiveclipping_mod}


class SharedArray(Array):
    """An Array whose payload is an ndarray: Ray pickles it out of band into shared memory, nothing is serialised.

    `numpy()` copies, as Flower's own does, so that code which writes into what it got stays right; use `view`.
    """

    __qualname__ = "Array"  # Flower writes the class's name on the wire, and the other end must know it

    def __init__(self, array: NDArray[Any]) -> None:
        self.__dict__.update(_array=array, dtype=str(array.dtype), shape=array.shape, stype=SType.NUMPY)

    def numpy(self) -> NDArray[Any]:
        """Return a copy that belongs to the caller."""
        return cast(NDArray[Any], self.__dict__["_array"].copy())

    @property
    def data(self) -> bytes:
        """Return the payload in Flower's serialisation (.npy), made anew at each call."""
        buffer = io.BytesIO()
        np.save(buffer, self.__dict__["_array"], allow_pickle=False)
        return buffer.getvalue()

    @data.setter
    def data(self, value: bytes) -> None:
        self.__dict__["_array"] = np.load(io.BytesIO(value), allow_pickle=False)

    def __reduce__(self) -> tuple[Callable[[NDArray[Any]], Array], tuple[NDArray[Any]]]:
        return _shared, (self.__dict__["_array"],)


def _shared(array: NDArray[Any]) -> Array:
    return SharedArray(array)


def view(array: Array) -> NDArray[Any]:
    """Return an Array's values without a copy; they may be read-only. Raises ValueError where they are no numbers."""
    if isinstance(array, SharedArray):
        return cast(NDArray[Any], array.__dict__["_array"])
    if array.stype != SType.NUMPY:
        raise ValueError(f"an array is serialised as {array.stype!r}, expected {SType.NUMPY!r}")
    file = io.BytesIO(array.data)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("an array holds Python objects, expected numbers")
    flat = np.frombuffer(array.data, dtype, offset=file.tell())
    return flat.reshape(shape, order="F" if is_fortran else "C")


def create_run(run_id: int) -> Run:
    """Return the description of a run that no SuperLink knows."""
    return Run.create_empty(run_id)


def ensure_identity() -> None:
    """Let this process make messages: outside of a SuperLink's own processes nobody has said who it is."""
    if TaskIdentity._task_id is None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message the identifier that a SuperLink would give it."""
    message.metadata.__dict__["_message_id"] = message_id


def clip(kind: str, content: RecordDict, train: Callable[[], RecordDict]) -> RecordDict:
    """Return what Flower's clipping mod of this kind makes of the reply that `train` gives to a task's content.

    Raises ProtocolError where the mod refuses, or cannot clip.
    """
    if kind not in CLIPPING_MODS:
        raise ProtocolError(f"clipping of kind {kind!r} was asked for, known are {', '.join(CLIPPING_MODS)}")
    ensure_identity()
    message = Message(content, dst_node_id=SUPERLINK_NODE_ID, message_type=MessageType.TRAIN)
    context = Context(run_id=1, node_id=SUPERLINK_NODE_ID, node_config={}, state=RecordDict(), run_config={})
    reply = Message(train(), reply_to=message)
    try:
        with flower_logs():
            out = CLIPPING_MODS[kind](message, context, lambda *_: reply)
    except ZeroDivisionError as error:
        raise ProtocolError("the update is zero, which Flower's clipping cannot scale") from error
    if out.has_error():
        raise ProtocolError(f"Flower's {kind} clipping refused: {out.error.reason}")
    return out.content


@contextmanager
def flower_logs() -> Iterator[list[str]]:
    """Keep Flower's log off the screen; yield the warnings in it, which say why a strategy gave nothing."""
    warnings: list[str] = []
    logger = logging.getLogger("flwr")
    handler = _Collector(warnings)
    kept_handlers, kept_level, kept_propagate = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.WARNING)
    try:
        yield warnings
    finally:
        logger.handlers, logger.propagate = kept_handlers, kept_propagate
        logger.setLevel(kept_level)


class _Collector(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage().strip())


@contextmanager
def global_generators(seed: int) -> Iterator[None]:
    """Seed the global generators of NumPy and Python, which Flower draws from, and put them back as they were."""
    numpys, pythons = np.random.get_state(), random.getstate()
    words = [int(word) for word in np.frombuffer(seed.to_bytes(8, "little"), "<u4")]
    np.random.seed(words)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpys)
        random.setstate(pythons)
