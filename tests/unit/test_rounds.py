"""The round loop with sites that answer, fail, poison and vanish; no Ray, no network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fl.errors import QuorumLost
from fl.server.means import MeanStrategy
from fl.server.rounds import FederationState, RoundSettings, Score, initial_state, is_finished, run_rounds
from fl.training.exchange import Assignment, LeftOut, Reply, RoundTask
from fl.training.local import TrainingSummary
from fl.types import Scan, Site

SCAN = Scan(path=Path("a.jpg"), label=0, pixels_sha256="a", phash=0, height=64, width=64)
SITES = [Site(name=f"site-{number}", scans=(SCAN,) * (number + 1)) for number in range(4)]
START = np.zeros(3, np.float32)
UNIFORM = MeanStrategy(aggregation="uniform")
Floats = NDArray[np.float32]


def reply(site: Site, round: int, parameters: Floats, loss: float = 0.5) -> Reply:
    summary = TrainingSummary(num_examples=site.num_examples, num_steps=1, mean_loss=loss, seconds=0.1)
    return Reply(site=site.name, round=round, update=parameters, summary=summary)


def in_order(train: Any) -> Any:
    """Return a `train` of the loop from one that takes (round, sites, parameters)."""

    def answer(task: RoundTask, assignments: Sequence[Assignment]) -> Iterator[Reply | LeftOut]:
        return train(task.round, [assignment.site for assignment in assignments], task.parameters)

    return answer


def step_up(round: int, selected: Sequence[Site], parameters: Floats) -> Iterator[Reply | LeftOut]:
    """Every site adds one, and answers in an order that changes with the round."""
    for site in sorted(selected, key=lambda site: hash((site.name, round))):
        yield reply(site, round, parameters + 1)


def height(parameters: Floats) -> Score:
    return Score(accuracy=float(parameters[0]) / 100, loss=1.0)


def run(train: Any = step_up, evaluate: Any = height, state: FederationState | None = None, **fields: Any) -> list[Any]:
    settings = RoundSettings.model_validate({"participation": 1.0, "early_stop": None, "rounds": 3, **fields})
    begin = state or initial_state(START, UNIFORM, evaluate)
    return list(
        run_rounds(
            begin,
            sites=SITES,
            settings=settings,
            strategy=MeanStrategy(aggregation=settings.aggregation),
            seed=7,
            train=in_order(train),
            evaluate=evaluate,
        )
    )


def test_each_round_starts_from_the_mean_of_the_one_before() -> None:
    states = run()

    assert [state.round for state in states] == [1, 2, 3]
    assert [state.parameters.tolist() for state in states] == [[1.0] * 3, [2.0] * 3, [3.0] * 3]
    assert [record.validation_accuracy for record in states[-1].history] == [0.01, 0.02, 0.03]


def test_start_has_its_own_score_and_is_the_best_until_beaten() -> None:
    start = initial_state(START, UNIFORM, lambda _: Score(accuracy=0.9, loss=0.1))

    (state,) = run(state=start, rounds=1)

    assert start.round == 0 and start.best_round == 0
    assert (state.best_round, state.best_score) == (0, Score(accuracy=0.9, loss=0.1))
    assert state.best_parameters is START and state.parameters[0] == 1
    assert state.start_score == start.start_score


def test_record_counts_sites_examples_and_bytes() -> None:
    def train(round: int, selected: Sequence[Site], parameters: Floats) -> Iterator[Reply | LeftOut]:
        for site in selected[:-1]:
            yield reply(site, round, parameters, loss=float(site.num_examples))
        yield LeftOut(site=selected[-1].name, reason="late")

    (state,) = run(train, rounds=1)

    record = state.history[0]
    assert [site.site for site in record.sites] == ["site-0", "site-1", "site-2"]
    assert record.left_out == (LeftOut(site="site-3", reason="late"),)
    assert (record.bytes_down, record.bytes_up) == (4 * 12, 3 * 12)
    assert record.train_loss == pytest.approx((1 * 1 + 2 * 2 + 3 * 3) / 6)
    assert record.seconds >= 0


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e9])
def test_poisoned_reply_is_refused_by_name_and_the_round_goes_on(poison: float) -> None:
    def train(round: int, selected: Sequence[Site], parameters: Floats) -> Iterator[Reply | LeftOut]:
        for site in selected:
            bad = site.name == "site-2"
            yield reply(site, round, np.append(parameters[:-1], np.float32(poison)) if bad else parameters + 1)

    states = run(train)

    assert states[-1].parameters.tolist() == [3.0] * 3
    for state in states:
        (out,) = state.history[-1].left_out
        assert out.site == "site-2" and out.reason.startswith("update refused: ")
        assert len(state.history[-1].sites) == 3


def test_stale_reply_of_an_earlier_round_is_refused() -> None:
    def train(round: int, selected: Sequence[Site], parameters: Floats) -> Iterator[Reply | LeftOut]:
        for site in selected:
            yield reply(site, 1 if site.name == "site-0" else round, parameters + 1)

    states = run(train, rounds=2)

    assert states[0].history[0].left_out == ()
    assert [out.site for out in states[1].history[1].left_out] == ["site-0"]


def test_second_reply_of_a_site_and_one_of_a_site_not_asked_are_named_and_not_counted() -> None:
    def train(round: int, selected: Sequence[Site], parameters: Floats) -> Iterator[Reply | LeftOut]:
        for site in selected:
            yield reply(site, round, parameters + 1)
        yield reply(selected[0], round, parameters + 100)
        stranger = next(site for site in SITES if site not in selected)
        yield reply(stranger, round, parameters + 100)

    (state,) = run(train, rounds=1, participation=0.5)

    assert state.parameters.tolist() == [1.0] * 3
    record = state.history[0]
    assert len(record.sites) == 2 and record.bytes_up == 2 * 12
    reasons = {out.reason for out in record.left_out}
    assert reasons == {
        "update refused: it has answered this round before; its first reply was counted",
        "update refused: it was not asked in this round",
    }


def test_half_of_the_sites_away_for_three_rounds_cost_their_say_and_nothing_else() -> None:
    def train(round: int, selected: Sequence[Site], parameters: Floats) -> Iterator[Reply | LeftOut]:
        for number, site in enumerate(selected):
            if number % 2 and round <= 3:
                yield LeftOut(site=site.name, reason="late")
            else:
                yield reply(site, round, parameters + np.float32(1 + number % 2))

    states = run(train, rounds=4, min_clients=2)

    assert [state.parameters[0] for state in states] == [1.0, 2.0, 3.0, 4.5]
    assert [len(state.history[-1].left_out) for state in states] == [2, 2, 2, 0]


def test_a_site_is_told_which_of_its_rounds_was_counted_last() -> None:
    told: list[dict[str, int]] = []

    def train(task: RoundTask, assignments: Sequence[Assignment]) -> Iterator[Reply | LeftOut]:
        told.append({one.site.name: one.state_round for one in assignments})
        for one in assignments:
            if one.site.name == "site-1" and task.round == 2:
                yield LeftOut(site="site-1", reason="late")
            else:
                yield reply(one.site, task.round, task.parameters)

    settings = RoundSettings(participation=1.0, early_stop=None, rounds=4)
    state = initial_state(START, UNIFORM, height)
    list(run_rounds(state, sites=SITES, settings=settings, strategy=UNIFORM, seed=7, train=train, evaluate=height))

    assert [rounds["site-0"] for rounds in told] == [0, 1, 2, 3]
    assert [rounds["site-1"] for rounds in told] == [0, 1, 1, 3], "its round 2 was never counted"


def test_record_tells_how_far_each_site_went() -> None:
    (state,) = run(rounds=1)

    assert [site.update_norm for site in state.history[0].sites] == pytest.approx([3**0.5] * 4)


def test_lost_quorum_stops_and_names_every_reason_and_the_remedy() -> None:
    def train(round: int, selected: Sequence[Site], parameters: Floats) -> Iterator[Reply | LeftOut]:
        yield reply(selected[0], round, parameters)
        yield reply(selected[1], round, parameters * np.float32("nan"))
        yield LeftOut(site="site-2", reason="its worker died 2 times")
        yield LeftOut(site="site-3", reason="late")

    with pytest.raises(QuorumLost) as caught:
        run(train, min_clients=2)

    for part in ("round 1", "1 usable replies", "min_clients is 2", "site-1: update refused", "site-2: its worker",
                 "site-3: late", "--resume"):  # fmt: skip
        assert part in str(caught.value)


def test_quorum_of_exactly_min_clients_is_enough() -> None:
    def train(round: int, selected: Sequence[Site], parameters: Floats) -> Iterable[Reply | LeftOut]:
        return [reply(site, round, parameters) for site in selected[:2]]

    assert len(run(train, min_clients=2)) == 3


def scored(*scores: tuple[float, float]) -> Any:
    """An evaluation that gives the start, then each round, the next (accuracy, loss)."""
    return lambda parameters: Score(accuracy=scores[int(parameters[0])][0], loss=scores[int(parameters[0])][1])


@pytest.mark.parametrize(
    ("scores", "best_round"),
    [
        ([(0.5, 1.0), (0.6, 1.0), (0.7, 1.0), (0.6, 0.1)], 2),
        ([(0.5, 1.0), (0.6, 1.0), (0.6, 0.9), (0.6, 0.95)], 2),
        ([(0.5, 1.0), (0.5, 1.0), (0.5, 1.0), (0.5, 1.0)], 0),
        ([(0.5, 1.0), (0.6, 9.0), (0.5, 0.1), (0.6, 9.0)], 1),
        ([(0.25, 1.4), (0.25, float("nan")), (0.25, float("nan")), (0.2, 0.1)], 0),
        ([(0.25, 1.4), (0.25, float("inf")), (0.3, float("nan")), (0.3, float("nan"))], 2),
    ],
    ids=["accuracy", "loss breaks ties", "ties keep the first", "accuracy before loss", "diverged", "diverged later"],
)
def test_best_round_is_the_most_accurate_then_the_least_loss(
    scores: list[tuple[float, float]], best_round: int
) -> None:
    evaluate = scored(*scores)

    state = run(evaluate=evaluate)[-1]

    assert state.best_round == best_round
    assert state.best_parameters.tolist() == [float(best_round)] * 3
    assert state.best_score.accuracy == scores[best_round][0]


def test_early_stop_ends_the_run_and_a_resumed_run_stops_at_the_same_round() -> None:
    fields = {"rounds": 30, "early_stop": {"window": 2, "min_delta": 0.001, "patience": 2}}

    def evaluate(parameters: Floats) -> Score:
        return Score(accuracy=min(0.05, float(parameters[0]) / 100), loss=1.0)

    states = run(evaluate=evaluate, **fields)

    assert 6 <= len(states) < 30
    settings = RoundSettings.model_validate({"participation": 1.0, **fields})
    assert is_finished(states[-1], settings) and not any(is_finished(state, settings) for state in states[:-1])
    for cut in range(len(states)):
        rest = run(evaluate=evaluate, state=states[cut], **fields)
        assert [comparable(state) for state in rest] == [comparable(state) for state in states[cut + 1 :]]


def comparable(state: FederationState) -> Any:
    records = [{key: value for key, value in asdict(record).items() if key != "seconds"} for record in state.history]
    return records, state.parameters.tolist(), state.best_round, state.best_parameters.tolist(), state.best_score


def test_run_that_is_finished_yields_nothing_and_trains_nobody() -> None:
    state = run()[-1]

    assert run(lambda *_: pytest.fail("no round is due"), state=state) == []


def test_only_the_selected_sites_are_asked() -> None:
    asked: list[list[str]] = []

    def train(round: int, selected: Sequence[Site], parameters: Floats) -> Iterator[Reply | LeftOut]:
        asked.append([site.name for site in selected])
        yield from step_up(round, selected, parameters)

    run(train, participation=0.5, rounds=6)

    assert {len(names) for names in asked} == {2}
    assert len({tuple(names) for names in asked}) > 1
