"""The benchmarks' frame, with work that moves a clock of its own: order, arithmetic, verdicts, file."""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import RESULTS, Options, main, run_suite
from benchmarks.case import Case, Peer, Run, Suite, Target
from benchmarks.measure import Budget, measure
from benchmarks.row import Row, run_case

FOUR_ROUNDS = Budget(case_seconds=0, sample_seconds=0, min_rounds=4, max_rounds=4)
CASE_KEYS = {
    *("case", "ours_seconds", "peer", "peer_seconds", "ratio", "limit_fraction", "samples", "correct"),
    *("ratio_quartiles", "target"),
}


@dataclass
class Stage:
    """A clock that only work moves, and a diary of who ran."""

    now: float = 0.0
    diary: list[str] = field(default_factory=list)
    slowness: Callable[[float], float] = lambda _: 1.0

    def clock(self) -> float:
        return self.now

    def work(self, name: str, seconds: float, result: object = 42) -> Run:
        def run() -> object:
            self.diary.append(name)
            self.now += seconds * self.slowness(self.now)
            return result

        return run


def differs(ours: object, theirs: object) -> str | None:
    return None if ours == theirs else f"{ours} against {theirs}"


def a_case(stage: Stage, *, ours: Run, peers: dict[str, Run], **more: Any) -> Case:
    named = tuple(Peer(name=name, run=run, differs=differs) for name, run in peers.items())
    return Case(name="a", items=10, ours=ours, peers=named, clock=stage.clock, **more)


def a_simple_case(*, seconds: float = 1.0, peer_seconds: float = 2.0, peer_result: int = 42, **more: Any) -> Case:
    stage = Stage()
    peers = {"them": stage.work("them", peer_seconds, peer_result)}
    return a_case(stage, ours=stage.work("us", seconds), peers=peers, **more)


def run_cases(cases: Iterable[Case], **options: Any) -> int:
    return run_suite(Suite(inputs="numbers", cases=cases), FOUR_ROUNDS, Options(suite="kernels", **options))


def a_row(case: Case) -> Row:
    return run_case(case, FOUR_ROUNDS)


def test_rounds_are_interleaved_and_every_second_one_goes_backwards() -> None:
    stage = Stage()
    runs = [stage.work(name, 1.0) for name in ("us", "them", "limit")]
    seconds_RC = measure(runs, FOUR_ROUNDS, stage.clock)
    there, back = ["us", "them", "limit"], ["limit", "them", "us"]
    assert stage.diary == there + (there + back) * 2  # the first three find out how often to repeat
    assert seconds_RC.tolist() == [[1.0, 1.0, 1.0]] * 4


def test_a_short_run_is_repeated_until_the_sample_is_long_enough() -> None:
    stage = Stage()
    budget = Budget(case_seconds=0, sample_seconds=1.0, min_rounds=1, max_rounds=1)
    seconds_RC = measure([stage.work("short", 0.125), stage.work("long", 3.0)], budget, stage.clock)
    assert stage.diary == ["short", "long", *["short"] * 8, "long"]
    assert seconds_RC.tolist() == [[0.125, 3.0]]


@pytest.mark.parametrize(("case_seconds", "rounds"), [(0.0, 3), (60.0, 7)])
def test_the_budget_bounds_the_rounds_at_both_ends(case_seconds: float, rounds: int) -> None:
    stage = Stage()
    budget = Budget(case_seconds=case_seconds, sample_seconds=0, min_rounds=3, max_rounds=7)
    assert len(measure([stage.work("us", 1.0)], budget, stage.clock)) == rounds


def test_figures_are_an_items_and_against_the_fastest_peer_and_limit() -> None:
    stage = Stage()
    row = a_row(
        a_case(
            stage,
            ours=stage.work("us", 2.0),
            peers={"slow": stage.work("slow", 9.0), "fast": stage.work("fast", 5.0)},
            limits=(stage.work("limit", 1.5), stage.work("lower limit", 1.0)),
        )
    )
    assert (row.ours_seconds, row.peer, row.peer_seconds) == (0.2, "fast", 0.5)
    assert (row.ratio, row.ratio_quartiles, row.limit_fraction) == (2.5, (2.5, 2.5), 0.5)
    assert (row.samples, row.complaint) == (4, None)


def test_a_machine_that_slows_down_moves_the_seconds_and_not_the_ratio() -> None:
    stage = Stage(slowness=lambda now: 1.0 if now < 12 else 10.0)  # from the third round on
    row = a_row(a_case(stage, ours=stage.work("us", 1.0), peers={"them": stage.work("them", 2.0)}))
    assert row.ours_seconds == pytest.approx(0.55)
    assert row.ratio == pytest.approx(2.0)


def test_a_case_without_limit_has_no_limit_fraction() -> None:
    assert a_row(a_simple_case()).to_json()["limit_fraction"] is None


@pytest.mark.parametrize("target", [Target(figure="limit_fraction", at_least=0.5), None])
def test_an_impossible_case_is_refused(target: Target | None) -> None:
    stage = Stage()
    peers = {} if target is None else {"them": stage.work("them", 1.0)}
    with pytest.raises(ValueError, match="'a' has"):
        a_case(stage, ours=stage.work("us", 1.0), peers=peers, target=target)


def test_the_file_has_the_agreed_form_and_names_no_host_user_or_path(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "figures.json"
    assert run_cases([a_simple_case(target=Target(figure="ratio", at_least=1.5))], output=path) == 0
    written = json.loads(path.read_text())
    assert set(written) == {"machine", "cases"}
    assert set(written["cases"][0]) == CASE_KEYS
    assert written["cases"][0] == {
        **{"case": "a", "ours_seconds": 0.1, "peer": "them", "peer_seconds": 0.2, "ratio": 2.0, "samples": 4},
        **{"ratio_quartiles": [2.0, 2.0], "limit_fraction": None, "target": {"ratio": 1.5}, "correct": True},
    }
    assert {"cpu", "cores", "isa", "memory_gib", "gpu", "os", "software", "date"} <= set(written["machine"])
    assert written["machine"]["inputs"] == "numbers"
    machine = json.dumps(written["machine"])
    assert not any(name in machine for name in (socket.gethostname(), str(Path.home()), str(tmp_path)))
    assert getpass.getuser() not in machine.split('"')
    assert [file.name for file in path.parent.iterdir()] == ["figures.json"]


@pytest.mark.parametrize("check", [False, True])
def test_a_wrong_result_exits_1_and_is_told_in_table_and_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], check: bool
) -> None:
    path = tmp_path / "figures.json"
    cases = [a_simple_case(), a_simple_case(peer_result=41)]
    assert run_cases(cases, output=path, check=check) == 1
    assert [case["correct"] for case in json.loads(path.read_text())["cases"]] == [True, False]
    assert "WRONG RESULT in a: them: 42 against 41" in capsys.readouterr().out


def test_a_peer_that_is_wrong_counts_even_where_another_is_faster() -> None:
    stage = Stage()
    peers = {"right": stage.work("right", 1.0), "wrong": stage.work("wrong", 5.0, 41)}
    row = a_row(a_case(stage, ours=stage.work("us", 1.0), peers=peers))
    assert (row.peer, row.complaint) == ("right", "wrong: 42 against 41")


@pytest.mark.parametrize(
    ("figure", "at_least", "check", "code"),
    [
        ("ratio", 2.0, True, 0),
        ("ratio", 2.1, True, 1),
        ("ratio", 2.1, False, 0),
        ("limit_fraction", 0.5, True, 0),
        ("limit_fraction", 0.6, True, 1),
    ],
)
def test_a_missed_target_exits_1_only_with_check(figure: Any, at_least: float, check: bool, code: int) -> None:
    stage = Stage()
    case = a_case(
        stage,
        ours=stage.work("us", 1.0),
        peers={"them": stage.work("them", 2.0)},
        limits=(stage.work("limit", 0.5),),
        target=Target(figure=figure, at_least=at_least),
    )
    assert run_cases([case], case="a", check=check) == code


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, RESULTS / "kernels.json"),
        ({"quick": True}, None),
        ({"case": "after*"}, None),
        ({"quick": True, "output": Path("here.json")}, Path("here.json")),
    ],
)
def test_only_a_whole_run_replaces_the_suites_file(options: dict[str, Any], expected: Path | None) -> None:
    assert Options(suite="kernels", **options).destination == expected


def test_a_pattern_chooses_cases_and_one_that_fits_none_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage()
    never = a_case(stage, ours=stage.work("us", 1.0), peers={"them": stage.work("them", 1.0)})
    with pytest.raises(SystemExit, match="no case named 'b\\*'"):
        run_cases([never], case="b*")
    assert stage.diary == []


def test_an_unknown_suite_is_a_usage_error_that_lists_the_suites(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["nothing"])
    assert stopped.value.code == 2
    assert "kernels" in capsys.readouterr().err
