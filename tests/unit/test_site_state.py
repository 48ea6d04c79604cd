"""What a site remembers: exactly the round that was counted, through crashes, resumes and long absence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl import durable
from fl.errors import SiteStateError
from fl.training.site_state import SiteMemory, SiteStates

SIZE = 5


def take_part(states: SiteStates, site: str, round: int, state_round: int) -> SiteMemory:
    """A round of a site that remembers how often it was counted, and when last."""
    before = states.load(site, state_round, ["residual"], SIZE)
    states.save(site, round, {"residual": before.arrays["residual"] + np.float32(round)}, after=before)
    return states.load(site, round, ["residual"], SIZE)


def rounds_on_disk(states: SiteStates, site: str) -> list[int]:
    return sorted(int(path.name[6:10]) for path in states.path(site, 1).parent.iterdir())


def value(memory: SiteMemory) -> float:
    (found,) = set(memory.arrays["residual"].tolist())
    return float(found)


def test_before_its_first_round_a_site_remembers_zeros(tmp_path: Path) -> None:
    memory = SiteStates(tmp_path).load("a", 0, ["control", "residual"], SIZE)

    assert {name: array.tolist() for name, array in memory.arrays.items()} == dict.fromkeys(
        ("control", "residual"), [0.0] * SIZE
    )
    assert not list(tmp_path.iterdir())


def test_memory_comes_back_to_the_bit_and_repeating_changes_nothing(tmp_path: Path) -> None:
    states, array = SiteStates(tmp_path), np.random.default_rng(1).normal(size=SIZE).astype(np.float32)
    for _ in range(2):
        states.save("a", 3, {"residual": array}, after=states.load("a", 0, ["residual"], SIZE))
        data = states.path("a", 3).read_bytes()

        found = SiteStates(tmp_path).load("a", 3, ["residual"], SIZE)
        assert found.arrays["residual"].tobytes() == array.tobytes()
    assert states.path("a", 3).read_bytes() == data and rounds_on_disk(states, "a") == [3]


def test_reply_that_was_not_counted_leaves_no_trace(tmp_path: Path) -> None:
    states = SiteStates(tmp_path)
    take_part(states, "a", 1, 0)
    take_part(states, "a", 2, 1)  # refused by the server

    assert value(take_part(states, "a", 3, 1)) == 1 + 3
    assert rounds_on_disk(states, "a") == [1, 3]


def test_site_that_was_away_for_long_goes_on_from_its_last_round(tmp_path: Path) -> None:
    states = SiteStates(tmp_path)
    for round, state_round in ((1, 0), (2, 1), (3, 2)):
        take_part(states, "a", round, state_round)
    assert rounds_on_disk(states, "a") == [1, 2, 3]

    assert value(take_part(states, "a", 50, 3)) == 1 + 2 + 3 + 50
    assert rounds_on_disk(states, "a") == [3, 50]


often = st.sampled_from([True, True, True, False])


@settings(deadline=None, max_examples=60)  # the disk is waited for
@given(turns=st.lists(st.tuples(often, often, often, often), min_size=1, max_size=25))
def test_resume_from_either_checkpoint_finds_the_state_it_leads_to(
    tmp_path_factory: pytest.TempPathFactory, turns: Sequence[tuple[bool, bool, bool, bool]]
) -> None:
    """A server that keeps two checkpoints, and dies now and then.

    Each turn is a round: is the site selected, is its reply counted, is the round saved, and if the server dies now, is
    the newest checkpoint whole.
    """
    states = SiteStates(tmp_path_factory.mktemp("states"))
    history: list[bool] = []  # whether the site was counted, by finished round
    checkpoints = [0]
    for selected, counted, saved, whole in turns:
        if selected:
            done = [number for number, was_counted in enumerate(history, 1) if was_counted]
            memory = take_part(states, "a", len(history) + 1, done[-1] if done else 0)
            assert value(memory) == sum(done) + len(history) + 1
        history.append(selected and counted)
        if saved:
            checkpoints = [*checkpoints, len(history)][-2:]
        if not whole and len(checkpoints) == 2:
            checkpoints.pop()
        if not (saved and whole):  # it died, and resumes from the newest checkpoint
            history = history[: checkpoints[-1]]


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "renamed", "other array", "other size"])
def test_state_that_cannot_be_used_is_said_of_site_round_and_file(tmp_path: Path, damage: str) -> None:
    states, names, size = SiteStates(tmp_path), ["residual"], SIZE
    take_part(states, "Charité/../x", 4, 0)
    path = states.path("Charité/../x", 4)
    assert path.resolve().is_relative_to(tmp_path)
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[:-3])
    elif damage == "flipped":
        data[-1] ^= 1
        path.write_bytes(data)
    elif damage == "renamed":
        take_part(states, "Charité/../x", 5, 4)
        states.path("Charité/../x", 5).replace(path)
    elif damage == "other array":
        names = ["control"]
    else:
        size = SIZE + 1

    with pytest.raises(SiteStateError) as caught:
        states.load("Charité/../x", 4, names, size)

    for part in ("'Charité/../x'", "round 4", str(path), "--run-dir"):
        assert part in str(caught.value)


def test_sites_and_jobs_do_not_see_each_other(tmp_path: Path) -> None:
    one, other = SiteStates(tmp_path, job="scenario"), SiteStates(tmp_path, job="baseline")
    for states in (one, other):
        take_part(states, "a b", 1, 0)
        take_part(states, "a-b", 1, 0)
    take_part(one, "a b", 2, 1)

    assert rounds_on_disk(one, "a b") == [1, 2]
    assert [rounds_on_disk(*who) for who in ((one, "a-b"), (other, "a b"), (other, "a-b"))] == [[1]] * 3
    with pytest.raises(SiteStateError, match="is missing"):
        other.load("a b", 2, ["residual"], SIZE)


def test_crash_while_writing_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Crash(BaseException):
        """Stands for a kill: nothing may catch it."""

    states = SiteStates(tmp_path)
    take_part(states, "a", 1, 0)

    def crash(target: Path, data: bytes, **_: object) -> None:
        target.write_bytes(data[: len(data) // 2])
        raise Crash

    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(durable, "write_synced", crash)
        take_part(states, "a", 2, 1)

    assert value(states.load("a", 1, ["residual"], SIZE)) == 1
    assert value(take_part(states, "a", 2, 1)) == 3
    assert rounds_on_disk(states, "a") == [1, 2], "what the crash left is gone"


def test_order_of_strides_does_not_matter(tmp_path: Path) -> None:
    states = SiteStates(tmp_path)
    strided: NDArray[np.float32] = np.arange(2 * SIZE, dtype=np.float32)[::2]

    states.save("a", 1, {"residual": strided}, after=states.load("a", 0, ["residual"], SIZE))

    assert states.load("a", 1, ["residual"], SIZE).arrays["residual"].tolist() == strided.tolist()
