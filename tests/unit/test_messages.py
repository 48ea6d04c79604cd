"""Tasks and replies as Flower's records, and what a site answers: with a trainer that adds, no network, no Ray."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from fl.errors import ProtocolError
from fl.runtime.client import VIEWS, answer, answer_message
from fl.runtime.flower_internals import SITE_RAISED, SharedArray, ensure_identity, view
from fl.runtime.messages import (
    ARRAYS,
    CLIPPING,
    CONFIG,
    DESCRIBE,
    EVALUATE,
    EXTRA,
    METRICS,
    PARAMETERS,
    PREPARE,
    TRAIN,
    arrays_record,
    pack_parameters,
    pack_reply,
    pack_tasks,
    share_arrays,
    unpack_counts,
    unpack_description,
    unpack_reply,
    unpack_task,
)
from fl.training.encoding import EncodedDelta, encode
from fl.training.exchange import Reply, RoundTask
from fl.training.local import TrainingSummary
from fl.types import Scan, Site

PARAMETERS_P = np.linspace(-1, 1, 5, dtype=np.float32)
TASK = RoundTask(round=3, parameters=PARAMETERS_P, config={"proximal-mu": 0.5})
SCANS = tuple(
    Scan(path=Path(f"/secret/{number}.jpg"), label=number % 4, pixels_sha256=f"{number}", phash=0, height=9, width=9)
    for number in range(6)
)
SITE = Site(name="glioma-00", group="glioma", scans=SCANS[:4], shared_scans=SCANS[4:], validation_scans=SCANS)
SUMMARY = TrainingSummary(num_examples=6, num_steps=12, mean_loss=0.25, seconds=1.5)


class Adder:
    """A trainer whose training adds the round to each parameter; it predicts class 0 for all but the first scan."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def describe(self) -> dict[str, str]:
        return {"device": "abacus"}

    def prepare(self, scans: Sequence[Scan], views: Sequence[int] | None) -> int:
        self.asked.append((len(scans), views))
        return len(scans)

    def train(self, task: RoundTask, site: Site, state_round: int) -> Reply:
        self.asked.append((task, site.name, state_round))
        update = task.parameters + np.float32(task.round)
        return Reply(site=site.name, round=task.round, update=update, summary=SUMMARY)

    def evaluate(self, parameters: NDArray[np.float32], scans: Sequence[Scan]) -> NDArray[np.float32]:
        logits = np.zeros((len(scans), 4), np.float32)
        logits[0, 3] = 9
        return logits


def adder() -> Any:
    """An Adder; it answers none of the questions of secure rounds and statistics, which have tests of their own."""
    return Adder()


def on_the_wire(content: RecordDict) -> RecordDict:
    """The records as the other end of a network gets them: each taken apart to bytes and put together again."""
    received = RecordDict()
    for key, record in content.items():
        if isinstance(record, ArrayRecord):
            arrived = ArrayRecord()
            for name, array in record.items():
                arrived[name] = Array.inflate(array.deflate(), array.children)
            received[key] = arrived
        else:
            received[key] = type(record).inflate(record.deflate())
    return received


def through_pickle(content: RecordDict) -> RecordDict:
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(content, protocol=5, buffer_callback=buffers.append)
    assert len(data) < 4000, "arrays travel beside the pickle, not in it"
    loaded: RecordDict = pickle.loads(data, buffers=buffers)
    return loaded


def plain(reply: Reply) -> NDArray[np.float32]:
    assert isinstance(reply.update, np.ndarray)
    return reply.update


WAYS = pytest.mark.parametrize("way", [lambda content: content, through_pickle, on_the_wire], ids=["", "ray", "wire"])
Way = Callable[[RecordDict], RecordDict]


@WAYS
def test_a_task_arrives_as_it_was_sent_with_each_sites_own_state_round(way: Way) -> None:
    task = replace(TASK, broadcast={"control": PARAMETERS_P * 2})

    for content, expected in zip(map(way, pack_tasks(task, [0, 2])), [0, 2], strict=True):
        arrived, state_round = unpack_task(content)

        assert (arrived.round, arrived.config, arrived.encoding, state_round) == (3, task.config, "float32", expected)
        assert arrived.parameters.tobytes() == task.parameters.tobytes()
        assert arrived.broadcast["control"].tobytes() == task.broadcast["control"].tobytes()


@WAYS
@given(
    update=arrays(np.float32, st.integers(1, 20), elements=st.floats(width=32, allow_nan=True)),
    loss=st.floats(),
    bit=st.integers(0, 1),
)
def test_a_reply_arrives_as_it_was_sent(way: Way, update: NDArray[np.float32], loss: float, bit: int) -> None:
    reply = Reply(site="a", round=2, update=update, summary=replace(SUMMARY, mean_loss=loss), metrics={"norm_bit": bit})

    arrived = unpack_reply(way(pack_reply(replace(reply, extra={"control-delta": update}))), "a")

    assert plain(arrived).tobytes() == arrived.extra["control-delta"].tobytes() == update.tobytes()
    assert repr(replace(arrived, update=update, extra={})) == repr(reply)


@WAYS
@pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
def test_an_encoded_reply_arrives_as_it_was_sent(way: Way, encoding: Any) -> None:
    update, _ = encode(PARAMETERS_P + 1, PARAMETERS_P, encoding, None)
    assert isinstance(update, EncodedDelta)

    arrived = unpack_reply(way(pack_reply(Reply(site="a", round=2, update=update, summary=SUMMARY))), "a").update

    assert isinstance(arrived, EncodedDelta)
    assert (arrived.values.dtype, arrived.values.tobytes()) == (update.values.dtype, update.values.tobytes())
    assert arrived.scales.tobytes() == update.scales.tobytes()


def test_arrays_are_shared_and_not_copied_on_the_way() -> None:
    contents = pack_tasks(TASK, [0, 1])
    assert contents[0][ARRAYS] is contents[1][ARRAYS]

    arrived, _ = unpack_task(through_pickle(contents[0]))
    assert np.shares_memory(arrived.parameters, PARAMETERS_P)

    serialised = RecordDict({ARRAYS: ArrayRecord([PARAMETERS_P])})
    assert np.array_equal(view(share_arrays(serialised)[ARRAYS]["0"]), PARAMETERS_P)  # type: ignore[arg-type]


def test_what_flower_code_gets_from_a_shared_array_is_its_own_to_write_into() -> None:
    frozen = PARAMETERS_P.copy()
    frozen.flags.writeable = False
    array = SharedArray(frozen)

    array.numpy()[:] = 7

    assert np.array_equal(array.numpy(), PARAMETERS_P)
    assert array.data == Array(PARAMETERS_P).data


def test_the_name_of_the_site_is_not_in_its_reply() -> None:
    content = pack_reply(Reply(site="glioma-00", round=1, update=PARAMETERS_P, summary=SUMMARY))

    assert "glioma" not in repr(content)
    assert unpack_reply(content, "the node's own").site == "the node's own"


def test_a_strategys_config_may_not_overwrite_what_the_round_says() -> None:
    with pytest.raises(ValueError, match="state-round"):
        pack_tasks(replace(TASK, config={"state-round": 9}), [0])


GOOD = {"num-examples": 1, "num-steps": 1, "loss": 0.5, "seconds": 0.1, "server-round": 1}


OBJECTS = (
    b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(127) + b"\n" + b"pickle"
)


def reply_records(**changes: Any) -> RecordDict:
    records: dict[str, Any] = {ARRAYS: arrays_record({PARAMETERS: PARAMETERS_P}), METRICS: MetricRecord(dict(GOOD))}
    return RecordDict({key: value for key, value in {**records, **changes}.items() if value is not None})


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (reply_records(arrays=None), "no 'arrays'"),
        (reply_records(metrics=None), "no 'metrics'"),
        (reply_records(metrics=ConfigRecord({})), "is a ConfigRecord"),
        (reply_records(arrays=arrays_record({"weights": PARAMETERS_P})), "no 'parameters'"),
        (reply_records(metrics=MetricRecord({**GOOD, "num-examples": 1.5})), "'num-examples' is 1.5"),
        (reply_records(metrics=MetricRecord({**GOOD, "loss": [0.5]})), "'loss' is"),
        (reply_records(extra=MetricRecord({})), "is a MetricRecord"),
        (reply_records(arrays=ArrayRecord({PARAMETERS: Array("float32", (3,), "torch", b"abc")})), "torch"),
        (reply_records(arrays=ArrayRecord({PARAMETERS: Array("float32", (3,), "numpy.ndarray", b"abc")})), "cannot be"),
        (reply_records(arrays=ArrayRecord({PARAMETERS: Array("float32", (1,), "numpy.ndarray", OBJECTS)})), "objects"),
    ],
)  # fmt: skip
def test_a_reply_that_is_none_is_refused_with_the_fault(content: RecordDict, fault: str) -> None:
    with pytest.raises(ProtocolError, match=fault):
        unpack_reply(content, "a")


@given(st.binary(max_size=200))
def test_no_bytes_in_place_of_an_array_do_more_than_be_refused(data: bytes) -> None:
    start = Array(PARAMETERS_P).data[:80]
    for payload in (data, start + data, start[:20] + data):
        content = reply_records(arrays=ArrayRecord({PARAMETERS: Array("float32", (5,), "numpy.ndarray", payload)}))
        try:
            unpack_reply(content, "a")
        except ProtocolError:
            continue


def test_a_site_trains_evaluates_describes_and_prepares() -> None:
    trainer = adder()

    reply = unpack_reply(answer(trainer, SITE, TRAIN, pack_tasks(TASK, [2])[0]), "glioma-00")
    assert plain(reply).tolist() == (PARAMETERS_P + 3).tolist()
    assert trainer.asked[0][1:] == ("glioma-00", 2)

    counts = unpack_counts(answer(trainer, SITE, EVALUATE, pack_parameters(PARAMETERS_P)))
    assert counts.confusion == ((1, 0, 0, 1), (2, 0, 0, 0), (1, 0, 0, 0), (1, 0, 0, 0))
    assert counts.num_examples == 6
    assert counts.loss_sum == pytest.approx(5 * np.log(4) + np.log(3 + np.exp(9)))

    said = unpack_description(answer(trainer, SITE, DESCRIBE, RecordDict()))
    assert (said.name, said.group, said.num_examples, said.num_validation) == ("glioma-00", "glioma", 6, 6)
    assert said.class_counts == (1, 1, 1, 1) and said.worker == {"device": "abacus"}

    trainer.asked.clear()
    answer(trainer, SITE, PREPARE, RecordDict({CONFIG: ConfigRecord({VIEWS: [0, 1]})}))
    assert trainer.asked == [(6, [0, 1]), (6, None)]


def test_nothing_of_a_scan_is_in_any_answer() -> None:
    requests = {
        TRAIN: pack_tasks(TASK, [0])[0],
        EVALUATE: pack_parameters(PARAMETERS_P),
        DESCRIBE: RecordDict(),
        PREPARE: RecordDict({CONFIG: ConfigRecord({VIEWS: [0]})}),
    }
    for message_type, content in requests.items():
        assert "secret" not in repr(answer(adder(), SITE, message_type, content))


def test_a_plain_flower_server_knows_no_encoding_and_no_state() -> None:
    content = RecordDict({ARRAYS: arrays_record({PARAMETERS: PARAMETERS_P}), CONFIG: ConfigRecord({"server-round": 1})})

    task, state_round = unpack_task(content)

    assert (task.encoding, state_round, task.config) == ("float32", 0, {})


def test_unknown_questions_and_impossible_ones_are_answered_with_the_reason() -> None:
    with pytest.raises(ProtocolError, match=r"query\.pixels.*knows train, evaluate"):
        answer(adder(), SITE, "query.pixels", RecordDict())
    with pytest.raises(ProtocolError, match="no validation scans"):
        answer(adder(), replace(SITE, validation_scans=()), EVALUATE, pack_parameters(PARAMETERS_P))
    with pytest.raises(ProtocolError, match="views"):
        answer(adder(), SITE, PREPARE, RecordDict())
    with pytest.raises(ProtocolError, match="int4"):
        answer(adder(), SITE, TRAIN, RecordDict({CONFIG: ConfigRecord({"encoding": "int4"})}))


@pytest.mark.parametrize("kind", ["fixed", "adaptive"])
def test_a_site_clips_as_flowers_mods_do(kind: str) -> None:
    task = replace(TASK, config={"clipping_norm": 0.1, CLIPPING: kind})

    reply = unpack_reply(answer(adder(), SITE, TRAIN, pack_tasks(task, [0])[0]), "a")

    assert np.linalg.norm(plain(reply) - PARAMETERS_P) == pytest.approx(0.1, rel=1e-5)
    assert reply.metrics == ({"norm_bit": 1} if kind == "adaptive" else {})


@pytest.mark.parametrize(
    "config", [{"clipping_norm": 0.1}, {"clipping_norm": 0.1, CLIPPING: "loose"}, {CLIPPING: "fixed"}]
)
def test_a_site_that_cannot_clip_as_asked_sends_nothing(config: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="clipping"):
        answer(adder(), SITE, TRAIN, pack_tasks(replace(TASK, config=config), [0])[0])


def test_errors_travel_as_flowers_and_only_deliberate_ones_in_their_own_words() -> None:
    ensure_identity()
    message = Message(RecordDict(), dst_node_id=5, message_type="query.pixels")

    reply = answer_message(adder(), SITE, message)

    assert reply.has_error() and reply.error.code == SITE_RAISED
    assert "query.pixels" in str(reply.error.reason)
    assert answer_message(adder(), SITE, Message(RecordDict(), dst_node_id=5, message_type=DESCRIBE)).has_content()


def test_extra_arrays_are_kept_apart_from_the_parameters() -> None:
    content = pack_reply(Reply(site="a", round=1, update=PARAMETERS_P, summary=SUMMARY, extra={"c": PARAMETERS_P}))

    assert set(content[ARRAYS]) == {PARAMETERS} and set(content[EXTRA]) == {"c"}
