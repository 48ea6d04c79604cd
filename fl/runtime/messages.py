"""Tasks and replies as Flower's records: what crosses Ray and what crosses the wire to a hospital is the same.

    task      arrays {parameters: float32[P]}, config {server-round, state-round, encoding, the strategy's own},
              broadcast {name: float32[P]} where the strategy sends further arrays
    reply     arrays {parameters: float32[P]} or, encoded, {delta: uint16 or int8 [P], scales: float32[...]},
              metrics {num-examples, num-steps, loss, seconds, server-round, ...},
              extra {name: float32[P]} where it asked for further arrays

Record names and keys are the defaults of Flower's strategies. A site's name is in no message: who answers is known by
the node, so that no site can speak for another. What arrives is not trusted: all that is read is checked for being
there and of its type (ProtocolError); whether the numbers are usable, `fl.server.aggregate` decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, MetricRecordValues, RecordDict
from numpy.typing import NDArray

from fl.errors import GliofedError, ProtocolError
from fl.runtime.flower_internals import SITE_RAISED, SharedArray, view
from fl.training.encoding import EncodedDelta, Encoding, Update
from fl.training.exchange import Reply, RoundTask, Scalar
from fl.training.local import TrainingSummary
from fl.types import CLASSES, Site

TRAIN = "train"
EVALUATE = "evaluate"
DESCRIBE = "query.describe"
PREPARE = "query.prepare"

ARRAYS, CONFIG, METRICS, BROADCAST, EXTRA = "arrays", "config", "metrics", "broadcast", "extra"
PARAMETERS = "parameters"
CLIPPING = "clipping"
"""Of a task's config: which of Flower's clipping mods the strategy counts on, `fixed` or `adaptive`."""

DELTA, SCALES = "delta", "scales"

_TASK_KEYS = ("server-round", "state-round", "encoding")
_SUMMARY_KEYS = ("num-examples", "num-steps", "loss", "seconds", "server-round")


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What a site says of a model on its own validation scans.

    confusion: counts by true class (rows) and predicted class. loss_sum: cross-entropy in nats over all examples.
    """

    confusion: tuple[tuple[int, ...], ...]
    loss_sum: float

    @property
    def num_examples(self) -> int:
        """Scans that were evaluated."""
        return sum(map(sum, self.confusion))


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteDescription:
    """What a site says of itself. class_counts: its own training scans of each class, in label order.

    num_examples: training examples of a local epoch, shared ones included. worker: how it computes.
    """

    name: str
    group: str
    num_examples: int
    num_validation: int
    class_counts: tuple[int, ...]
    worker: Mapping[str, str]


def arrays_record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Return arrays as a record that shares their memory."""
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = SharedArray(array)
    return record


def share_arrays(content: RecordDict) -> RecordDict:
    """Return the same records with every array as one that Ray hands over without a copy."""
    with _read("message"):
        return RecordDict(
            {
                key: arrays_record({name: view(array) for name, array in record.items()})
                if isinstance(record, ArrayRecord)
                else record
                for key, record in content.items()
            }
        )


def pack_tasks(task: RoundTask, state_rounds: Sequence[int]) -> list[RecordDict]:
    """Return one message's content for each site; they share their arrays.

    state_rounds: for each site, which of its rounds was counted last, 0 for none. Raises ValueError where the
    strategy's config uses a name that the round itself uses.
    """
    if taken := sorted(set(task.config) & set(_TASK_KEYS)):
        raise ValueError(f"a strategy's config may not have {', '.join(taken)}: the round itself says these")
    shared: dict[str, Any] = {ARRAYS: arrays_record({PARAMETERS: task.parameters})}
    if task.broadcast:
        shared[BROADCAST] = arrays_record(task.broadcast)
    config = {**task.config, "server-round": task.round, "encoding": task.encoding}
    return [
        RecordDict({**shared, CONFIG: ConfigRecord({**config, "state-round": state_round})})
        for state_round in state_rounds
    ]


def unpack_task(content: RecordDict) -> tuple[RoundTask, int]:
    """Return a task and the site's `state_round`. Raises ProtocolError.

    A server that knows of neither, as a plain Flower one, means state_round 0 and encoding float32.
    """
    with _read("task"):
        config = dict(_record(content, CONFIG, ConfigRecord))
        encoding = config.get("encoding", "float32")
        if encoding not in get_args(Encoding):
            raise ProtocolError(f"the task asks for encoding {encoding!r}; known: {', '.join(get_args(Encoding))}")
        task = RoundTask(
            round=_integer(config, "server-round"),
            parameters=_arrays(content, ARRAYS)[PARAMETERS],
            broadcast=_arrays(content, BROADCAST) if BROADCAST in content else {},
            config={name: _scalar(name, value) for name, value in config.items() if name not in _TASK_KEYS},
            encoding=encoding,
        )
        return task, _integer({"state-round": 0, **config}, "state-round")


def pack_reply(reply: Reply) -> RecordDict:
    """Return a reply's records, which share its arrays."""
    metrics = {**reply.metrics, **pack_summary(reply.summary, reply.round)}
    content = RecordDict({ARRAYS: arrays_record(_update_arrays(reply.update)), METRICS: MetricRecord(metrics)})
    if reply.extra:
        content[EXTRA] = arrays_record(reply.extra)
    return content


def unpack_reply(content: RecordDict, site: str) -> Reply:
    """Return the reply of the site whose node answered. Raises ProtocolError."""
    with _read("reply"):
        metrics = dict(_record(content, METRICS, MetricRecord))
        return Reply(
            site=site,
            round=_integer(metrics, "server-round"),
            update=_update(_arrays(content, ARRAYS)),
            extra=_arrays(content, EXTRA) if EXTRA in content else {},
            metrics={name: _number(metrics, name) for name in metrics if name not in _SUMMARY_KEYS},
            summary=unpack_summary(content),
        )


def _update_arrays(update: Update) -> dict[str, NDArray[Any]]:
    if isinstance(update, EncodedDelta):
        return {DELTA: update.values, SCALES: update.scales}
    return {PARAMETERS: update}


def _update(arrays: Mapping[str, NDArray[Any]]) -> Update:
    return EncodedDelta(values=arrays[DELTA], scales=arrays[SCALES]) if DELTA in arrays else arrays[PARAMETERS]


def pack_summary(summary: TrainingSummary, round: int) -> dict[str, MetricRecordValues]:
    """Return the metrics that every reply to a training has."""
    return {
        "num-examples": summary.num_examples,
        "num-steps": summary.num_steps,
        "loss": float(summary.mean_loss),
        "seconds": float(summary.seconds),
        "server-round": round,
    }


def unpack_summary(content: RecordDict) -> TrainingSummary:
    """Return what a site says of its training. Raises ProtocolError."""
    with _read("reply"):
        metrics = _record(content, METRICS, MetricRecord)
        return TrainingSummary(
            num_examples=_integer(metrics, "num-examples"),
            num_steps=_integer(metrics, "num-steps"),
            mean_loss=float(_number(metrics, "loss")),
            seconds=float(_number(metrics, "seconds")),
        )


def unpack_array(content: RecordDict, name: str) -> NDArray[Any]:
    """Return one array of a message's arrays, without a copy. Raises ProtocolError."""
    with _read("message"):
        return _arrays(content, ARRAYS)[name]


def pack_parameters(parameters: NDArray[np.float32]) -> RecordDict:
    """Return the content that asks for an evaluation of parameters [P]."""
    return RecordDict({ARRAYS: arrays_record({PARAMETERS: parameters}), CONFIG: ConfigRecord()})


def unpack_parameters(content: RecordDict) -> NDArray[np.float32]:
    """Return the parameters [P] that a message carries. Raises ProtocolError."""
    return unpack_array(content, PARAMETERS)


def pack_counts(counts: Counts) -> RecordDict:
    """Return an evaluation's records, with the metrics that Flower's strategies average beside the counts."""
    total = counts.num_examples
    hits = sum(row[label] for label, row in enumerate(counts.confusion))
    metrics: dict[str, MetricRecordValues] = {
        "num-examples": total,
        "loss": counts.loss_sum / total,
        "accuracy": hits / total,
        "loss-sum": counts.loss_sum,
        "confusion": [count for row in counts.confusion for count in row],
    }
    return RecordDict({METRICS: MetricRecord(metrics)})


def unpack_counts(content: RecordDict) -> Counts:
    """Return what a site counted. Raises ProtocolError."""
    with _read("evaluation"):
        metrics = dict(_record(content, METRICS, MetricRecord))
        flat, size = metrics["confusion"], len(CLASSES)
        if not isinstance(flat, list) or len(flat) != size**2:
            raise ProtocolError(f"an evaluation's confusion is not a list of {size**2} counts")
        if not all(isinstance(count, int) and count >= 0 for count in flat):
            raise ProtocolError("an evaluation's confusion has entries that are no counts")
        rows = tuple(tuple(int(count) for count in flat[row * size : (row + 1) * size]) for row in range(size))
        return Counts(confusion=rows, loss_sum=float(_number(metrics, "loss-sum")))


def pack_description(site: Site, worker: Mapping[str, str]) -> RecordDict:
    """Return a site's description of itself."""
    counts = [sum(scan.label == label for scan in site.scans) for label in range(len(CLASSES))]
    about: dict[str, Any] = {
        "name": site.name,
        "group": site.group,
        "num-examples": site.num_examples,
        "num-validation": len(site.validation_scans),
        "class-counts": counts,
    }
    return RecordDict({"site": ConfigRecord(about), "worker": ConfigRecord(dict(worker))})


def unpack_description(content: RecordDict) -> SiteDescription:
    """Return what a site said of itself. Raises ProtocolError."""
    with _read("description"):
        about, worker = dict(_record(content, "site", ConfigRecord)), dict(_record(content, "worker", ConfigRecord))
        counts = about["class-counts"]
        if not isinstance(counts, list) or not all(isinstance(count, int) for count in counts):
            raise ProtocolError("a description's class-counts is no list of counts")
        return SiteDescription(
            name=str(about["name"]),
            group=str(about["group"]),
            num_examples=_integer(about, "num-examples"),
            num_validation=_integer(about, "num-validation"),
            class_counts=tuple(int(count) for count in counts),
            worker={key: str(value) for key, value in worker.items()},
        )


def error_reply(message: Message, error: Exception, code: int = SITE_RAISED) -> Message:
    """Return a reply that says why there is none.

    Only a deliberate failure's own words are sent: those of any other may quote a path or a file's content.
    """
    reason = str(error) if isinstance(error, GliofedError) else f"{type(error).__name__}; see the site's own log"
    return Message(Error(code, reason), reply_to=message)


@contextmanager
def _read(what: str) -> Iterator[None]:
    try:
        yield
    except KeyError as missing:
        raise ProtocolError(f"a {what} has no {missing.args[0]!r}") from missing
    except (ValueError, TypeError, SyntaxError, EOFError, OverflowError) as error:
        raise ProtocolError(f"a {what} cannot be read: {error}") from error


def _record(content: RecordDict, key: str, kind: type[Any]) -> Mapping[str, Any]:
    record: object = content[key]
    if not isinstance(record, kind):
        raise ProtocolError(f"record {key!r} is a {type(record).__name__}, expected {kind.__name__}")
    values: Mapping[str, Any] = record
    return values


def _arrays(content: RecordDict, key: str) -> dict[str, NDArray[Any]]:
    return {name: view(array) for name, array in _record(content, key, ArrayRecord).items()}


def _number(values: Mapping[str, Any], key: str) -> int | float:
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ProtocolError(f"{key!r} is {value!r}, expected a number")
    return value


def _integer(values: Mapping[str, Any], key: str) -> int:
    value = _number(values, key)
    if not isinstance(value, int):
        raise ProtocolError(f"{key!r} is {value!r}, expected a whole number")
    return value


def _scalar(name: str, value: object) -> Scalar:
    if not isinstance(value, bool | int | float | str):
        raise ProtocolError(f"the task's {name!r} is of type {type(value).__name__}, expected a number, text or flag")
    return value
