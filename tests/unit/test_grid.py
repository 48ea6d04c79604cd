"""The worker pool and Flower's Grid on it, with a real local Ray of two workers."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import ray
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import strategy as flower

from fl.errors import Stopped
from fl.runtime.cluster import WorkerPlan
from fl.runtime.flower_internals import REPLY_UNAVAILABLE, SITE_RAISED, SITE_UNAVAILABLE
from fl.runtime.grid import RayGrid
from fl.runtime.messages import ARRAYS, CONFIG, DESCRIBE, PARAMETERS, pack_tasks, unpack_description, unpack_reply
from fl.runtime.pool import Call, Done, Failed, WorkerPool
from fl.runtime.sites import Limits, describe_sites, evaluate_sites, prepare_sites, train_sites
from fl.training.exchange import Assignment, LeftOut, Reply, RoundTask
from fl.types import Scan, Site

if TYPE_CHECKING:
    from numpy.typing import NDArray

PLAN = WorkerPlan(num_workers=2, num_threads=1, num_gpus=0.0)
START = np.arange(300_000, dtype=np.float32)
SCAN = Scan(path=Path("a.jpg"), label=1, pixels_sha256="a", phash=0, height=64, width=64)


def make_trainer() -> Any:
    """Return a class that travels to the workers by value: they cannot import this module."""

    class Trainer:
        """Adds one; what a site is called says what else happens at it. setup: a folder for marks."""

        def __init__(self, setup: Path) -> None:
            self.folder = setup

        def describe(self) -> dict[str, str]:
            return {"pid": str(os.getpid())}

        def prepare(self, scans: Sequence[Scan], views: Sequence[int] | None) -> int:
            return len(scans)

        def evaluate(self, parameters: NDArray[np.float32], scans: Sequence[Scan]) -> NDArray[np.float32]:
            return np.zeros((len(scans), 4), np.float32)

        def attempts(self, site: str) -> int:
            mark = self.folder / site
            with mark.open("a") as file:
                file.write("x")
            return len(mark.read_text())

        def train(self, task: RoundTask, site: Site, state_round: int) -> Reply:
            from fl.training.local import TrainingSummary

            attempt = self.attempts(site.name)
            if (site.name.startswith("mortal") and attempt == 1) or site.name.startswith("doomed"):
                os._exit(1)
            if site.name.startswith("slow"):
                time.sleep(30)
            if site.name.startswith("broken"):
                raise ValueError("no such scanner")
            borrowed = not task.parameters.flags.owndata and not task.parameters.flags.writeable
            return Reply(
                site=site.name,
                round=task.round,
                update=task.parameters + np.float32(1),
                summary=TrainingSummary(num_examples=1, num_steps=1, mean_loss=0.5, seconds=0.0),
                metrics={"borrowed": int(borrowed), "attempt": attempt},
            )

    return Trainer


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    # what another test may have chosen for Rays of its own, after this process had imported Ray
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_AUTH_MODE", raising=False)
        yield from _ray()


def _ray() -> Iterator[None]:
    ray.init(
        address="local", num_cpus=2, num_gpus=0, object_store_memory=256 * 2**20, include_dashboard=False,
        logging_level=logging.ERROR, log_to_driver=False,
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerPool]:
    with WorkerPool(tmp_path_factory.mktemp("marks"), PLAN, make_trainer=make_trainer()) as pool:  # type: ignore[arg-type]
        yield pool


def sites(*names: str) -> list[Site]:
    return [Site(name=name, scans=(SCAN,), validation_scans=(SCAN,) * 2) for name in names]


def ask(pool: WorkerPool, *names: str, seconds: float = 20) -> dict[str, Reply | LeftOut]:
    grid = RayGrid(pool, sites(*names))
    assignments = [Assignment(site=site, state_round=0) for site in sites(*names)]
    task = RoundTask(round=1, parameters=START)
    return {out.site: out for out in train_sites(grid, grid.nodes, task, assignments, Limits(timeout_seconds=seconds))}


def reply_of(out: Reply | LeftOut) -> Reply:
    assert isinstance(out, Reply), out
    return out


def reason_of(out: Reply | LeftOut) -> str:
    assert isinstance(out, LeftOut), out
    return out.reason


def test_arrays_cross_without_a_copy_both_ways_and_are_put_once(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    put: list[Any] = []

    def broadcast(value: Any) -> Any:
        put.append(value)
        return WorkerPool.broadcast(pool, value)

    monkeypatch.setattr(pool, "broadcast", broadcast)

    outcomes = ask(pool, "a", "b", "c", "d")

    assert len(put) == 1 and len(outcomes) == 4
    for out in map(reply_of, outcomes.values()):
        assert out.metrics["borrowed"] == 1, "the worker got a copy of its own"
        assert isinstance(out.update, np.ndarray) and np.array_equal(out.update, START + 1)
        assert not out.update.flags.owndata and not out.update.flags.writeable


def test_a_worker_that_dies_is_replaced_and_its_site_asked_once_more(pool: WorkerPool) -> None:
    outcomes = ask(pool, "mortal-1", "fine-1", "doomed-1", "fine-2")

    assert reply_of(outcomes["mortal-1"]).metrics["attempt"] == 2
    assert reason_of(outcomes["doomed-1"]).startswith("its worker died 2 times")
    assert {reply_of(outcomes[name]).metrics["attempt"] for name in ("fine-1", "fine-2")} == {1}


def test_a_late_site_is_left_out_its_worker_replaced_and_others_served(pool: WorkerPool) -> None:
    started = time.monotonic()

    outcomes = ask(pool, "slow-1", "prompt-1", "prompt-2", seconds=1)

    assert reason_of(outcomes["slow-1"]) == "late: no reply within 1 s; its worker was replaced"
    assert all(isinstance(outcomes[name], Reply) for name in ("prompt-1", "prompt-2"))
    assert time.monotonic() - started < 28, "the site sleeps for 30 s"
    assert isinstance(ask(pool, "next-1")["next-1"], Reply)


def test_a_site_that_raises_says_what(pool: WorkerPool) -> None:
    assert reason_of(ask(pool, "broken-1")["broken-1"]) == "ValueError: no such scanner"


def test_whoever_stops_reading_leaves_nothing_running(pool: WorkerPool) -> None:
    grid, asked = RayGrid(pool, sites("slow-2", "x")), sites("slow-2", "x")
    assignments = [Assignment(site=site, state_round=0) for site in asked]
    replies = train_sites(
        grid, grid.nodes, RoundTask(round=1, parameters=START), assignments, Limits(timeout_seconds=60)
    )
    assert next(iter(replies)).site == "x"

    replies.close()  # type: ignore[attr-defined]

    started = time.monotonic()
    assert all(isinstance(out, Reply) for out in ask(pool, "y-1", "y-2", "y-3").values())
    assert time.monotonic() - started < 20, "a worker was still at the message that nobody waits for"


def test_sites_describe_prepare_and_evaluate_through_messages(pool: WorkerPool) -> None:
    grid = RayGrid(pool, sites("a", "b"))
    limits = Limits(timeout_seconds=20)

    described = dict(describe_sites(grid, list(grid.get_node_ids()), limits))
    assert {node: said.name for node, said in described.items() if not isinstance(said, LeftOut)} == {1: "a", 2: "b"}
    assert dict(prepare_sites(grid, grid.nodes, [0], limits)) == {"a": None, "b": None}
    counts = dict(evaluate_sites(grid, grid.nodes, START, limits))
    assert {site: said.num_examples for site, said in counts.items() if not isinstance(said, LeftOut)} == {
        "a": 2,
        "b": 2,
    }


@pytest.mark.parametrize("name", ["FedAvg", "FedAdam", "QFedAvg", "FedMedian"])
def test_flowers_own_loop_runs_unmodified_on_the_pool(pool: WorkerPool, name: str) -> None:
    options: dict[str, dict[str, Any]] = {
        "QFedAvg": {"client_learning_rate": 1.0, "train_loss_key": "loss"},
        "FedAdam": {"eta": 1.0},
    }
    strategy = getattr(flower, name)(min_available_nodes=3, min_train_nodes=3, **options.get(name, {}))
    start: ArrayRecord = ArrayRecord([np.zeros(4, np.float32)])
    named = ArrayRecord({PARAMETERS: start["0"]})

    result = strategy.start(RayGrid(pool, sites("a", "b", "c")), named, num_rounds=2)

    learnt = result.arrays[PARAMETERS].numpy()
    assert learnt.shape == (4,) and (learnt > 0.5).all()
    if name in ("FedAvg", "FedMedian"):
        assert learnt.tolist() == [2.0] * 4
    assert result.train_metrics_clientapp[2]["loss"] == 0.5
    assert result.evaluate_metrics_clientapp[2]["accuracy"] == 0.0


def message_to(grid: RayGrid, node: int, message_type: str = "train", ttl: float = 20) -> Message:
    (content,) = pack_tasks(RoundTask(round=1, parameters=START), [0])
    return grid.create_message(content if message_type == "train" else RecordDict(), message_type, node, "1", ttl)


def test_messages_are_pushed_and_pulled_one_by_one_and_failures_are_errors(pool: WorkerPool) -> None:
    grid = RayGrid(pool, sites("p", "broken-2", "doomed-2", "slow-3"))
    nodes = [*grid.nodes.values(), 99]
    pushed = list(grid.push_messages([message_to(grid, node, ttl=2) for node in nodes]))
    assert len(set(pushed)) == 5

    came: dict[str, Message] = {}
    give_up_at = time.monotonic() + 60
    while len(came) < 5 and time.monotonic() < give_up_at:
        for reply in grid.pull_messages([identifier for identifier in pushed if identifier not in came]):
            came[reply.metadata.reply_to_message_id] = reply

    replies = [came[identifier] for identifier in pushed]
    assert replies[0].has_content() and replies[0].metadata.src_node_id == 1
    codes = [reply.error.code for reply in replies[1:]]
    assert codes == [SITE_RAISED, SITE_UNAVAILABLE, REPLY_UNAVAILABLE, SITE_UNAVAILABLE]
    assert list(grid.pull_messages(pushed)) == [], "each reply comes once"


def test_send_and_receive_returns_what_came_in_time(pool: WorkerPool) -> None:
    grid = RayGrid(pool, sites("q", "slow-30"))
    started = time.monotonic()

    replies = list(grid.send_and_receive([message_to(grid, 1), message_to(grid, 2)], timeout=8))

    assert [reply.metadata.src_node_id for reply in replies] == [1]
    assert 7.5 < time.monotonic() - started < 25
    (described,) = grid.send_and_receive([message_to(grid, 1, DESCRIBE)])
    assert unpack_description(described.content).name == "q"


def test_a_server_that_sends_flowers_own_arrays_is_understood(pool: WorkerPool) -> None:
    grid = RayGrid(pool, sites("r"))
    plain = RecordDict({ARRAYS: ArrayRecord({PARAMETERS: Array(START)}), CONFIG: ConfigRecord({"server-round": 1})})

    (reply,) = grid.send_and_receive([grid.create_message(plain, "train", 1, "1")])

    arrived = unpack_reply(reply.content, "r")
    assert arrived.metrics["borrowed"] == 1 and arrived.summary.num_examples == 1
    assert np.array_equal(reply.content.array_records[ARRAYS][PARAMETERS].numpy(), START + 1)


def test_two_consumers_take_turns_and_each_gets_its_own_outcomes(pool: WorkerPool) -> None:
    def calls(*names: str) -> list[Call]:
        return [Call(key=name, method="attempts", arguments=(name,)) for name in names]

    first, second = (pool.submit(calls(*names), timeout_seconds=20) for names in (("u", "v", "w"), ("z",)))
    ((ticket, outcome),) = wait_for(pool, second)
    assert ticket == second[0] and isinstance(outcome, Done) and outcome.call.key == "z"
    assert [out.call.key for out in pool.run(calls("t"), timeout_seconds=20)] == ["t"]

    outcomes = wait_for(pool, first)
    assert sorted(out.call.key for _, out in outcomes) == ["u", "v", "w"]
    assert all(isinstance(out, Done) for _, out in outcomes)
    assert pool.poll(first) == []


def wait_for(pool: WorkerPool, tickets: Sequence[int]) -> list[tuple[int, Done | Failed]]:
    came: list[tuple[int, Done | Failed]] = []
    give_up_at = time.monotonic() + 30
    while len(came) < len(tickets) and time.monotonic() < give_up_at:
        came += pool.poll(tickets)
    return came


def test_calls_for_a_place_without_a_worker_fail_at_once(pool: WorkerPool) -> None:
    call = Call(key="pinned", method="describe", arguments=(), node_resource="hospital")

    (outcome,) = pool.run([call], timeout_seconds=20)

    assert isinstance(outcome, Failed) and outcome.cause == "no worker"
    assert outcome.reason == "no worker on the node with resource 'hospital': none was asked for"


def test_a_signal_ends_the_waiting(tmp_path: Path) -> None:
    asked = iter([False, False, True])
    one = WorkerPlan(num_workers=1, num_threads=1, num_gpus=0.0)
    stop = lambda: next(asked)  # noqa: E731
    with (
        WorkerPool(tmp_path, one, make_trainer=make_trainer(), should_stop=stop) as pool,  # type: ignore[arg-type]
        pytest.raises(Stopped, match="--resume"),
    ):
        list(pool.run([Call(key="x", method="attempts", arguments=("x",))] * 3, timeout_seconds=20))
