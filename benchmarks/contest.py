"""Whole programs against each other, each in processes of its own that tell themselves what an item of work cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.case import Case, Peer, Target
from benchmarks.row import Row, summarise


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one run of a program came to.

    wall_seconds, cpu_seconds: an item; CPU time is that of all its processes. made: what is compared. remark: what
    limited it, as one line.
    """

    wall_seconds: float
    cpu_seconds: float
    made: Any
    remark: str


Program = Callable[[], Outcome]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    """Our program and its peers', run in turn.

    peers: (name, program) each; the fastest counts. differs(ours, theirs) compares what two runs made: None where
    they agree, else what is wrong, as one line. turns: how often each runs. cpu_target: for the ratio of CPU times,
    which gets a row of its own where there is one. remarks: what a reader has to know whatever comes out.
    """

    name: str
    ours: Program
    peers: Sequence[tuple[str, Program]]
    differs: Callable[[Any, Any], str | None]
    turns: int
    target: Target | None = None
    cpu_target: Target | None = None
    remarks: tuple[str, ...] = ()


def run_contest(contest: Contest) -> list[Row]:
    """Run all programs in turn, every second time in reverse order, and compare what each turn made."""
    programs = (contest.ours, *(program for _, program in contest.peers))
    outcomes_TP = [_turn(programs, number) for number in range(contest.turns)]
    complaint = next((found for turn in outcomes_TP if (found := _complaint(contest, turn)) is not None), None)
    wall_TP = np.array([[outcome.wall_seconds for outcome in turn] for turn in outcomes_TP])
    cpu_TP = np.array([[outcome.cpu_seconds for outcome in turn] for turn in outcomes_TP])
    row = summarise(_as_case(contest, contest.name, contest.target), wall_TP, complaint)
    place = 1 + [name for name, _ in contest.peers].index(row.peer)
    ours, theirs = np.median(cpu_TP, axis=0)[[0, place]]
    last = outcomes_TP[-1]
    remarks = (f"ours: {last[0].remark}", f"{row.peer}: {last[place].remark}", *contest.remarks)
    rows = [replace(row, cpu_seconds=(float(ours), float(theirs)), remarks=remarks)]
    if contest.cpu_target is not None:
        case = _as_case(contest, f"{contest.name}_cpu", contest.cpu_target)
        rows.append(replace(summarise(case, cpu_TP, complaint), remarks=("seconds are CPU time of all processes",)))
    return rows


def _turn(programs: Sequence[Program], number: int) -> list[Outcome]:
    order = range(len(programs)) if number % 2 == 0 else reversed(range(len(programs)))
    outcomes = {place: programs[place]() for place in order}
    return [outcomes[place] for place in range(len(programs))]


def _complaint(contest: Contest, turn: Sequence[Outcome]) -> str | None:
    ours, *theirs = turn
    for (name, _), outcome in zip(contest.peers, theirs, strict=True):
        if (complaint := contest.differs(ours.made, outcome.made)) is not None:
            return f"{name}: {complaint}"
    return None


def _as_case(contest: Contest, name: str, target: Target | None) -> Case:
    peers = tuple(Peer(name=peer, run=program, differs=contest.differs) for peer, program in contest.peers)
    return Case(name=name, items=1, ours=contest.ours, peers=peers, target=target)
