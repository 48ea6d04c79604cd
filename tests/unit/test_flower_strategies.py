"""Flower's strategies through our rounds: what they learn, what they remember, in which order replies may come."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from fl.errors import GliofedError, QuorumLost
from fl.random import stream
from fl.runtime.client import answer_message
from fl.runtime.flower_internals import CLIPPING_NORM, create_run, ensure_identity, set_message_id
from fl.runtime.messages import CLIPPING, PARAMETERS, arrays_record
from fl.runtime.sites import Limits, train_sites
from fl.server.checkpoint import load_checkpoint, save_checkpoint
from fl.server.choice import MeanSettings, StrategySettings, Surroundings, make_strategy, misfit, secure_misfit
from fl.server.flower_options import FlowerSettings
from fl.server.rounds import FederationState, RoundSettings, Score, initial_state, run_rounds
from fl.server.strategy import Strategy
from fl.training.encoding import decode
from fl.training.exchange import Assignment, LeftOut, Reply, RoundTask
from fl.training.local import LocalSettings, TrainingSummary
from fl.types import Scan, Site

Floats = NDArray[np.float32]
SIZE, SEED, ROUNDS = 40, 7, 3
SCAN = Scan(path=Path("a.jpg"), label=0, pixels_sha256="a", phash=0, height=64, width=64)
SITES = [Site(name=f"site-{number:02d}", scans=(SCAN,) * (number + 1)) for number in range(7)]
START = np.linspace(-1, 1, SIZE, dtype=np.float32)

PLAIN: dict[str, dict[str, Any]] = {
    "FedAvg": {},
    "FedAvgM": {"server_momentum": 0.9, "server_learning_rate": 0.7},
    "FedAdam": {"eta": 0.05, "tau": 0.01},
    "FedAdagrad": {"eta": 0.05, "tau": 0.01},
    "FedYogi": {"eta": 0.05, "tau": 0.01},
    "FedProx": {"proximal_mu": 0.3},
    "QFedAvg": {"client_learning_rate": 0.5, "q": 0.2},
    "FedMedian": {},
    "FedTrimmedAvg": {"beta": 0.2},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
    "Bulyan": {"num_malicious_nodes": 1},
}
DP: dict[str, dict[str, Any]] = {
    "DifferentialPrivacyServerSideFixedClipping": {"noise_multiplier": 0.1, "clipping_norm": 0.4},
    "DifferentialPrivacyServerSideAdaptiveClipping": {"noise_multiplier": 0.1, "clip_norm_lr": 0.5},
    "DifferentialPrivacyClientSideFixedClipping": {"noise_multiplier": 0.1, "clipping_norm": 0.4},
    "DifferentialPrivacyClientSideAdaptiveClipping": {"noise_multiplier": 0.1, "clip_norm_lr": 0.5},
}
SETTINGS = {name: FlowerSettings(name=name, options=options) for name, options in PLAIN.items()}
SETTINGS |= {
    f"{wrapper} of {inner}": FlowerSettings.model_validate(
        {"name": inner, "options": PLAIN[inner], "dp": {"name": wrapper, "options": options}}
    )
    for (wrapper, options), inner in zip(DP.items(), ["FedAvg", "FedAdam", "FedAvgM", "FedAvg"], strict=True)
}
EACH = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
OF_MEANS = ["FedAvg", "FedAvgM", "FedAdam", "FedAdagrad", "FedYogi", "FedProx"]


class Walker:
    """A trainer whose sites walk half-way to a point of their own, with an inner walk that depends on the round."""

    def describe(self) -> dict[str, str]:
        return {}

    def prepare(self, scans: Sequence[Scan], views: Sequence[int] | None) -> int:
        return 0

    def evaluate(self, parameters: Floats, scans: Sequence[Scan]) -> Floats:
        return np.zeros((len(scans), 4), np.float32)

    def train(self, task: RoundTask, site: Site, state_round: int) -> Reply:
        goal = stream(SEED, "goal", site.name).normal(size=SIZE)
        step = stream(SEED, "step", site.name, task.round).normal(size=SIZE) * 0.1
        update = (task.parameters + 0.5 * (goal - task.parameters) + step).astype(np.float32)
        loss = float(np.square(goal - task.parameters).mean())
        summary = TrainingSummary(num_examples=site.num_examples, num_steps=1, mean_loss=loss, seconds=0.0)
        return Reply(site=site.name, round=task.round, update=update, summary=summary)


class LocalGrid(Grid):
    """Sites of this process as Flower's nodes, answered in an order that `reorder` chooses."""

    def __init__(self, sites: Sequence[Site] = SITES, reorder: Any = list, trainer: Any = None) -> None:
        ensure_identity()
        self.sites = dict(enumerate(sites, start=1))
        self.reorder = reorder
        self.trainer: Any = trainer or Walker()
        self.numbers = count()
        self.replies: dict[str, Message] = {}

    @property
    def nodes(self) -> Mapping[str, int]:
        return {site.name: node for node, site in self.sites.items()}

    @property
    def run(self) -> Any:
        return create_run(1)

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        return list(self.sites)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        identifiers = []
        for message in messages:
            set_message_id(message, f"{next(self.numbers)}")
            site = self.sites[message.metadata.dst_node_id]
            self.replies[message.metadata.message_id] = answer_message(self.trainer, site, message)
            identifiers.append(message.metadata.message_id)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return list(self.reorder([self.replies[identifier] for identifier in message_ids]))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))


def strategy_of(settings: StrategySettings, aggregation: Any = "uniform") -> Strategy:
    job = Surroundings(
        aggregation=aggregation, encoding="float32", local=LocalSettings(), num_sites=len(SITES), layout=(), seed=SEED
    )
    return make_strategy(settings, job)


def learn(
    strategy: Strategy, *, rounds: int = ROUNDS, state: FederationState | None = None, grid: LocalGrid | None = None
) -> Iterator[FederationState]:
    grid = grid or LocalGrid()

    def evaluate(parameters: Floats) -> Score:
        return Score(accuracy=0.5, loss=1.0)

    return run_rounds(
        state or initial_state(START, strategy, evaluate),
        sites=list(grid.sites.values()),
        settings=RoundSettings(participation=1.0, early_stop=None, rounds=rounds),
        strategy=strategy,
        seed=SEED,
        train=lambda task, asked: train_sites(grid, grid.nodes, task, asked, Limits(timeout_seconds=10)),
        evaluate=evaluate,
    )


def flowers_own(settings: FlowerSettings, rounds: int = ROUNDS) -> Floats:
    """What `start` of an object of Flower's makes of the same sites."""
    common = {"fraction_evaluate": 0.0, "min_train_nodes": 1, "min_available_nodes": 1}
    if settings.name == "QFedAvg":
        common["train_loss_key"] = "loss"  # type: ignore[assignment]
    strategy = getattr(flower, settings.name)(**common, **settings.options)
    start: ArrayRecord = arrays_record({PARAMETERS: START})
    gc.freeze()  # Flower collects garbage at each reply, and there is much of it to look at in a test process
    final = strategy.start(LocalGrid(reorder=lambda found: sorted(found, key=node)), start, num_rounds=rounds)
    gc.unfreeze()
    learnt: Floats = final.arrays[PARAMETERS].numpy()
    return learnt


def node(message: Message) -> int:
    return message.metadata.src_node_id


@pytest.mark.parametrize("name", PLAIN)
def test_every_strategy_learns_what_its_own_start_learns(name: str) -> None:
    weighted = {*OF_MEANS, "MultiKrum"}

    states = list(learn(strategy_of(SETTINGS[name], "by_examples" if name in weighted else "uniform")))

    expected = flowers_own(SETTINGS[name])
    assert not np.allclose(expected, START, atol=0.1), "nothing was learnt"
    np.testing.assert_allclose(states[-1].parameters, expected, rtol=3e-6, atol=3e-6)
    assert states[-1].parameters.dtype == np.float32


@EACH
def test_a_run_that_is_resumed_after_any_round_ends_with_the_same_bytes(
    settings: FlowerSettings, tmp_path: Path
) -> None:
    strategy = strategy_of(settings)
    undisturbed = list(learn(strategy))

    for cut in range(1, ROUNDS):
        save_checkpoint(tmp_path / f"{cut}", undisturbed[cut - 1], job_digest="a")
        random.seed(cut), np.random.seed(cut)
        resumed = list(learn(strategy, state=load_checkpoint(tmp_path / f"{cut}", job_digest="a")))

        assert [state.round for state in resumed] == list(range(cut + 1, ROUNDS + 1))
        for one, other in zip(resumed, undisturbed[cut:], strict=True):
            assert one.parameters.tobytes() == other.parameters.tobytes()
            assert bytes_of(one) == bytes_of(other)


def bytes_of(state: FederationState) -> dict[str, bytes]:
    return {name: np.asarray(array).tobytes() for name, array in state.strategy_state.items()}


@EACH
def test_replies_in_any_order_give_the_same_bytes(settings: FlowerSettings) -> None:
    runs = [
        list(learn(strategy_of(settings), grid=LocalGrid(reorder=reorder)))[-1]
        for reorder in (list, lambda found: list(reversed(found)), lambda found: found[3:] + found[:3])
    ]

    assert len({state.parameters.tobytes() for state in runs}) == 1
    assert bytes_of(runs[0]) == bytes_of(runs[1]) == bytes_of(runs[2])


@EACH
def test_global_generators_are_left_as_they_were(settings: FlowerSettings) -> None:
    random.seed(3), np.random.seed(3)
    before = random.getstate(), repr(np.random.get_state())

    list(learn(strategy_of(settings), rounds=1))

    assert before == (random.getstate(), repr(np.random.get_state()))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("FedAvg", []),
        ("FedProx", []),
        ("FedMedian", []),
        ("QFedAvg", []),
        ("FedAvgM", ["momentum_vector/list/0/array"]),
        ("FedAdam", ["m_t/dict/0/array", "v_t/dict/0/array"]),
        ("DifferentialPrivacyServerSideFixedClipping of FedAvg", []),
        (
            "DifferentialPrivacyServerSideAdaptiveClipping of FedAdam",
            ["clipping_norm/float", "strategy/attr/m_t/dict/0/array", "strategy/attr/v_t/dict/0/array"],
        ),
    ],
)
def test_a_checkpoint_holds_what_the_next_round_needs_and_no_more(name: str, expected: list[str]) -> None:
    (state,) = learn(strategy_of(SETTINGS[name]), rounds=1)

    assert sorted(state.strategy_state) == expected


@pytest.mark.parametrize("name", OF_MEANS)
@pytest.mark.parametrize("aggregation", ["uniform", "by_examples", "class_balanced"])
def test_a_mean_handed_over_by_itself_is_learnt_from_as_the_replies_are(name: str, aggregation: str) -> None:
    strategy = strategy_of(SETTINGS[name], aggregation)
    mean = strategy_of(MeanSettings(), aggregation).begin(1, SITES, START, {})
    one, other = (strategy.begin(1, SITES, START, {}) for _ in range(2))

    for site in SITES:
        reply = Walker().train(one.task, site, 0)
        parameters = decode(reply.update, START)
        one.add(site, parameters, reply)
        mean.add(site, parameters, reply)
    other.add_mean(mean.result().parameters)

    assert one.result().parameters.tobytes() == other.result().parameters.tobytes()


def test_sites_are_told_what_the_strategy_says() -> None:
    def task(name: str) -> RoundTask:
        return strategy_of(SETTINGS[name]).begin(2, SITES, START, {}).task

    assert task("FedAvg").config == {}
    assert task("FedProx").config == {"proximal-mu": 0.3}
    fixed = task("DifferentialPrivacyClientSideFixedClipping of FedAvgM")
    assert fixed.config == {CLIPPING_NORM: 0.4, CLIPPING: "fixed"} and fixed.round == 2
    assert task("DifferentialPrivacyClientSideAdaptiveClipping of FedAvg").config == {
        CLIPPING_NORM: 0.1,
        CLIPPING: "adaptive",
    }


def test_the_clipping_norm_adapts_over_rounds_and_is_told_to_sites() -> None:
    strategy = strategy_of(SETTINGS["DifferentialPrivacyClientSideAdaptiveClipping of FedAvg"])

    states = list(learn(strategy))

    norms = [float(state.strategy_state["clipping_norm/float"]) for state in states]
    assert len({0.1, *norms}) == 4, "it changes with every round"
    assert strategy.begin(4, SITES, START, states[-1].strategy_state).task.config[CLIPPING_NORM] == norms[-1]


@pytest.mark.parametrize("wrapper", DP)
def test_noise_is_of_the_size_that_the_number_of_replies_calls_for(wrapper: str) -> None:
    quiet, loud = (
        FlowerSettings.model_validate(
            {"name": "FedAvg", "dp": {"name": wrapper, "options": {**DP[wrapper], "noise_multiplier": noise}}}
        )
        for noise in (0.0, 0.1)
    )
    sites = [replace(site, name=f"{site.name}-{copy}") for site in SITES for copy in range(3)]
    norm = DP[wrapper].get("clipping_norm", 0.1)

    for present in (sites, sites[:7]):
        ((without,), (with_noise,)) = (
            learn(strategy_of(settings), rounds=1, grid=LocalGrid(present)) for settings in (quiet, loud)
        )
        deviation = np.std(with_noise.parameters - without.parameters)
        assert deviation == pytest.approx(0.1 * norm / len(present), rel=0.4)


def test_a_late_site_leaves_the_noise_as_large_as_the_fewer_replies_need() -> None:
    settings = SETTINGS["DifferentialPrivacyServerSideFixedClipping of FedAvg"]
    aggregates = [strategy_of(settings).begin(1, SITES, START, {}) for _ in range(2)]

    for aggregate, sites in zip(aggregates, [SITES, SITES[:2]], strict=True):
        for site in sites:
            reply = Walker().train(aggregate.task, site, 0)
            aggregate.add(site, START + np.float32(1e-6), reply)

    all_of_them, two = (np.std(aggregate.result().parameters - START) for aggregate in aggregates)
    assert two / all_of_them == pytest.approx(7 / 2, rel=0.02)


def test_too_few_replies_end_the_round_with_flowers_own_reason() -> None:
    with pytest.raises(QuorumLost, match=r"Bulyan learnt nothing of 3 replies.*at least 7"):
        list(learn(strategy_of(SETTINGS["Bulyan"]), grid=LocalGrid(SITES[:3])))


def test_a_failure_within_flower_is_named() -> None:
    wrapper = {"name": "DifferentialPrivacyServerSideAdaptiveClipping", "options": {"noise_multiplier": 1}}
    settings = FlowerSettings.model_validate({"name": "FedAvg", "dp": wrapper})

    with pytest.raises(GliofedError, match=r"round 1: Flower's FedAvg failed: .*too low to achieve.*noise_multiplier"):
        list(learn(strategy_of(settings)))


class Spoilt(Walker):
    """One site says something that cannot be used."""

    def __init__(self, **changes: Any) -> None:
        self.changes = changes

    def train(self, task: RoundTask, site: Site, state_round: int) -> Reply:
        reply = super().train(task, site, state_round)
        if site.name != "site-03":
            return reply
        update = task.parameters if "update" in self.changes else reply.update
        return replace(reply, update=update, summary=replace(reply.summary, **self.changes.get("summary", {})))


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("QFedAvg", {"summary": {"mean_loss": float("nan")}}, "loss of nan"),
        ("QFedAvg", {"summary": {"mean_loss": -1.0}}, "loss of -1"),
        ("DifferentialPrivacyServerSideFixedClipping of FedAvg", {"update": None}, "update is zero"),
        ("DifferentialPrivacyClientSideAdaptiveClipping of FedAvg", {"update": None}, "update is zero"),
    ],
)
def test_a_reply_that_a_strategy_cannot_use_is_left_out_and_named(
    name: str, changes: dict[str, Any], reason: str
) -> None:
    (state,) = learn(strategy_of(SETTINGS[name]), rounds=1, grid=LocalGrid(trainer=Spoilt(**changes)))

    (out,) = state.history[0].left_out
    assert out.site == "site-03" and reason in out.reason
    assert np.isfinite(state.parameters).all() and len(state.history[0].sites) == 6


def test_parameters_longer_than_a_piece_are_put_together_again(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {name: list(learn(strategy_of(settings)))[-1] for name, settings in SETTINGS.items()}
    monkeypatch.setattr("fl.server.flower.PIECE", 16)

    for name, settings in SETTINGS.items():
        state = list(learn(strategy_of(settings)))[-1]
        np.testing.assert_allclose(state.parameters, whole[name].parameters, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("middle", range(len(SITES)))
def test_small_updates_of_large_parameters_are_told_apart(middle: int) -> None:
    settings = FlowerSettings(name="Krum", options={"num_malicious_nodes": 1})
    parameters = stream(SEED, "large").normal(size=100_000).astype(np.float32) * 30
    aggregate = strategy_of(settings).begin(1, SITES, parameters, {})

    for number, site in enumerate(SITES):
        step = stream(SEED, "small", site.name).normal(size=len(parameters)) * 1e-4 * (1 + 0.3 * abs(number - middle))
        reply = Reply(
            site=site.name,
            round=1,
            update=(parameters + step).astype(np.float32),
            summary=TrainingSummary(num_examples=1, num_steps=1, mean_loss=1.0, seconds=0.0),
        )
        aggregate.add(site, decode(reply.update, parameters), reply)

    chosen = (parameters + stream(SEED, "small", SITES[middle].name).normal(size=len(parameters)) * 1e-4).astype("f4")
    np.testing.assert_allclose(aggregate.result().parameters, chosen, rtol=2e-7)


class Rememberer(flower.FedAvg):
    """A strategy that remembers something which is no array."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        self.seen = {"set", "of", "words"}
        return super().aggregate_train(server_round, replies)


def test_what_cannot_be_checkpointed_is_an_error_and_never_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flwr.serverapp.strategy.FedAvg", Rememberer)

    with pytest.raises(GliofedError, match=r"Rememberer remembers seen .*set"):
        list(learn(strategy_of(FlowerSettings(name="FedAvg"))))


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"name": "FedAdamW"}, "Input should be 'FedAvg', 'FedAvgM'"),
        ({"name": "FedAdam", "options": {"etta": 1}}, "no option 'etta'; did you mean eta\\? known: eta, beta_1"),
        ({"name": "FedAvg", "options": {"x": 1}}, "known: none"),
        ({"name": "FedAdam", "options": {"eta": "fast"}}, "eta of FedAdam: Input should be a valid number"),
        ({"name": "Krum", "options": {"num_malicious_nodes": 1.5}}, "valid integer"),
        ({"name": "QFedAvg"}, "QFedAvg needs options client_learning_rate"),
        ({"name": "FedAvg", "options": {"fraction_train": 0.5}}, "set fl.participation"),
        ({"name": "QFedAvg", "options": {"client_learning_rate": 1, "train_loss_key": "x"}}, "names the records"),
        ({"name": "Bulyan", "options": {"selection_rule": "x"}}, "takes Python code"),
        ({"name": "FedYogi", "options": {"eta_l": 0.1}}, "fl.local.learning_rate"),
        ({"name": "FedAvg", "dp": {"name": "DifferentialPrivacyServerSideFixedClipping"}}, "noise_multiplier, clipp"),
        (
            {
                "name": "FedAvg",
                "dp": {
                    "name": "DifferentialPrivacyClientSideFixedClipping",
                    "options": {"noise_multiplier": 1, "clipping_norm": -1},
                },
            },
            "clipping norm should be a positive",
        ),
        (
            {
                "name": "FedAvg",
                "dp": {
                    "name": "DifferentialPrivacyClientSideAdaptiveClipping",
                    "options": {"noise_multiplier": 1, "num_sampled_clients": 3},
                },
            },
            "number of sites that answered",
        ),
    ],
)
def test_options_that_cannot_be_are_refused_when_the_job_is_read(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        TypeAdapter(FlowerSettings).validate_python(settings)


def test_options_are_read_as_the_types_that_the_class_declares() -> None:
    assert FlowerSettings(name="FedAdam", options={"eta": "1e-2", "tau": 1}).options == {"eta": 0.01, "tau": 1.0}


@pytest.mark.parametrize(
    ("name", "aggregation", "fault"),
    [
        ("FedMedian", "by_examples", "weighs sites the same"),
        ("DifferentialPrivacyServerSideFixedClipping of FedAvg", "class_balanced", "set it to uniform"),
    ],
)
def test_weights_that_a_strategy_would_ignore_are_refused(name: str, aggregation: Any, fault: str) -> None:
    settings = SETTINGS[name]

    assert fault in str(misfit(settings, aggregation, "float32", LocalSettings()))
    assert misfit(settings, "uniform", "float32", LocalSettings()) is None
    with pytest.raises(ValueError, match=fault):
        strategy_of(settings, aggregation)


@EACH
def test_secure_aggregation_is_for_strategies_that_take_a_mean(settings: FlowerSettings) -> None:
    refused = secure_misfit(settings, "uniform", "float32") is not None
    aggregate = strategy_of(settings).begin(1, SITES, START, {})

    if refused:
        with pytest.raises(ValueError, match=r"each site's reply|number of replies"):
            aggregate.add_mean(START)
    else:
        aggregate.add_mean(START)
        assert np.isfinite(aggregate.result().parameters).all()


def test_strategies_that_weigh_sites_follow_class_balance() -> None:
    sites = [replace(site, group="a" if number < 2 else "b") for number, site in enumerate(SITES)]
    settings = FlowerSettings(name="MultiKrum", options={"num_nodes_to_select": 7})

    ((krum,), (mean,)) = (
        learn(strategy_of(chosen, "class_balanced"), rounds=1, grid=LocalGrid(sites))
        for chosen in (settings, MeanSettings())
    )

    np.testing.assert_allclose(krum.parameters, mean.parameters, rtol=1e-5, atol=1e-6)


def test_a_site_that_raises_is_left_out_with_the_reason_and_the_round_goes_on() -> None:
    class Raising(Walker):
        def train(self, task: RoundTask, site: Site, state_round: int) -> Reply:
            if site.name == "site-01":
                raise GliofedError("the scanner is on fire")
            return super().train(task, site, state_round)

    (state,) = learn(strategy_of(SETTINGS["FedAvg"]), rounds=1, grid=LocalGrid(trainer=Raising()))

    assert state.history[0].left_out == (LeftOut(site="site-01", reason="the scanner is on fire"),)


def ask_all(grid: LocalGrid, sites: Sequence[Site] = SITES, **limits: Any) -> list[Reply | LeftOut]:
    task = RoundTask(round=1, parameters=START)
    assignments = [Assignment(site=site, state_round=0) for site in sites]
    return list(train_sites(grid, grid.nodes, task, assignments, Limits(timeout_seconds=1, **limits)))


def test_a_second_reply_and_a_node_that_is_gone_are_left_out_by_name() -> None:
    stranger = Site(name="stranger", scans=(SCAN,))

    outcomes = ask_all(LocalGrid(SITES[:2], reorder=lambda found: [*found, found[0]]), [*SITES[:2], stranger])

    left_out = [out for out in outcomes if isinstance(out, LeftOut)]
    assert [(out.site, out.reason.split(":")[0]) for out in left_out] == [
        ("stranger", "its node is not connected"),
        ("site-00", "duplicate"),
    ]
    assert len(outcomes) == 4


def test_a_grid_that_never_answers_is_given_up() -> None:
    outcomes = ask_all(LocalGrid(SITES[:2], reorder=lambda found: []), SITES[:2], give_up_seconds=0.05)

    assert [out.reason for out in outcomes if isinstance(out, LeftOut)] == ["late: no reply within 0.05 s"] * 2


def test_a_message_that_outlived_its_time_is_late() -> None:
    grid = LocalGrid(SITES[:1])

    def expired(found: list[Message]) -> list[Message]:
        for message in found:
            message.__dict__["_content"] = None
            message.error = Error(4, "the reply has expired")
        return found

    grid.reorder = expired
    (out,) = ask_all(grid, SITES[:1])

    assert isinstance(out, LeftOut) and out.reason == "late: no reply within 1 s (the reply has expired)"
