"""A round under secure aggregation, from task to mean, with sites that answer in this process."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from fl.errors import GliofedError, SecureAggregationError
from fl.privacy.secagg.plan import SecureAggregationSettings
from fl.runtime.client import ANSWERS, answer
from fl.runtime.secure import (
    SECURE_KEYS,
    SECURE_SHARES,
    SECURE_TRAIN,
    SECURE_UNMASK,
    VECTOR,
    train_secure_round,
)
from fl.server.means import MeanStrategy
from fl.server.rounds import RoundSettings, Score, initial_state, run_rounds
from fl.training.exchange import Assignment, LeftOut, Reply, RoundTask, SecureMean
from fl.training.local import TrainingSummary
from fl.types import Scan, Site

SCAN = Scan(path=Path("a.jpg"), label=0, pixels_sha256="a", phash=0, height=64, width=64)
SITES = [Site(name=f"site-{number}", scans=(SCAN,) * (number + 1)) for number in range(6)]
START = np.linspace(-1, 1, 500).astype(np.float32)
SETTINGS = SecureAggregationSettings()


@dataclass
class Trainer:
    """Moves the parameters by a constant of its site's own."""

    state_root: Path
    trained: int = 0

    def describe(self) -> dict[str, str]:
        return {}

    def prepare(self, scans: Any, views: Any) -> int:
        return 0

    def evaluate(self, parameters: Any, scans: Any) -> Any:
        raise NotImplementedError

    def train(self, task: RoundTask, site: Site, state_round: int) -> Reply:
        self.trained += 1
        move = np.float32(site.num_examples / 1000)
        summary = TrainingSummary(num_examples=site.num_examples, num_steps=1, mean_loss=0.5, seconds=0.1)
        return Reply(site=site.name, round=task.round, update=task.parameters + move, summary=summary)


@dataclass
class Sites:
    """Answers for all sites; `away` says from which message type on a site is gone. Keeps all that was sent."""

    trainer: Trainer
    away: Mapping[str, str] = field(default_factory=dict)
    sent: list[tuple[str, str, RecordDict]] = field(default_factory=list)

    def ask(
        self, contents: Mapping[str, RecordDict], message_type: str, timeout_seconds: float
    ) -> Iterator[tuple[str, RecordDict | LeftOut]]:
        for site in [site for site in reversed(SITES) if site.name in contents]:
            order = (SECURE_KEYS, SECURE_SHARES, SECURE_TRAIN, SECURE_UNMASK)
            if site.name in self.away and order.index(message_type) >= order.index(self.away[site.name]):
                yield site.name, LeftOut(site=site.name, reason="late")
                continue
            try:
                content = answer(self.trainer, site, message_type, contents[site.name])
            except GliofedError as error:
                yield site.name, LeftOut(site=site.name, reason=str(error))
                continue
            self.sent.append((site.name, message_type, content))
            yield site.name, content


@pytest.fixture
def sites(tmp_path: Path) -> Sites:
    return Sites(trainer=Trainer(state_root=tmp_path))


def secure_round(
    sites: Sites, *, by_examples: bool = True, round: int = 1, context: bytes = b"job"
) -> tuple[SecureMean, list[LeftOut]]:
    outcomes = list(
        train_secure_round(
            sites.ask,
            RoundTask(round=round, parameters=START),
            [Assignment(site=site, state_round=0) for site in SITES],
            SETTINGS,
            by_examples=by_examples,
            context=context,
            timeout_seconds=60,
        )
    )
    (mean,) = [outcome for outcome in outcomes if isinstance(outcome, SecureMean)]
    return mean, [outcome for outcome in outcomes if isinstance(outcome, LeftOut)]


@pytest.mark.parametrize("by_examples", [True, False])
def test_mean_is_the_plain_weighted_mean_to_quantisation(sites: Sites, by_examples: bool) -> None:
    mean, left_out = secure_round(sites, by_examples=by_examples)

    weights = np.array([site.num_examples if by_examples else 1 for site in SITES])
    expected = START + np.average([site.num_examples / 1000 for site in SITES], weights=weights)
    np.testing.assert_allclose(mean.parameters, expected, atol=1e-6)
    assert left_out == [] and mean.num_clipped == 0
    assert {site: summary.num_examples for site, summary in mean.summaries.items()} == {
        site.name: site.num_examples for site in SITES
    }


def test_the_same_round_gives_the_same_bytes_though_its_secrets_differ(sites: Sites, tmp_path: Path) -> None:
    first, _ = secure_round(sites)
    second, _ = secure_round(Sites(trainer=Trainer(state_root=tmp_path / "other")))

    assert first.parameters.tobytes() == second.parameters.tobytes()


def test_no_site_sends_its_update_in_any_message(sites: Sites) -> None:
    secure_round(sites)

    vectors = {
        site: content.array_records["arrays"][VECTOR].numpy()
        for site, kind, content in sites.sent
        if kind == SECURE_TRAIN
    }
    assert len(vectors) == len(SITES)
    for vector in vectors.values():  # an update is one value 500 times; what is sent is uniform over 32 bits
        assert len(np.unique(vector[:500])) == 500
        assert abs(np.mean(vector[:500] / 2**32) - 0.5) < 0.1
    others = [content for _, kind, content in sites.sent if kind != SECURE_TRAIN]
    assert all(not content.array_records for content in others)


@pytest.mark.parametrize("phase", [SECURE_KEYS, SECURE_SHARES, SECURE_TRAIN, SECURE_UNMASK])
def test_a_site_lost_in_any_phase_is_survived_and_named(sites: Sites, phase: str) -> None:
    sites.away = {"site-3": phase}

    mean, left_out = secure_round(sites)

    in_sum = [site for site in SITES if site.name != "site-3" or phase == SECURE_UNMASK]
    weights = [site.num_examples for site in in_sum]
    expected = START + np.average([site.num_examples / 1000 for site in in_sum], weights=weights)
    np.testing.assert_allclose(mean.parameters, expected, atol=1e-6)
    assert [out.site for out in left_out] == ([] if phase == SECURE_UNMASK else ["site-3"])


def test_too_many_lost_sites_fail_closed(sites: Sites) -> None:
    sites.away = {f"site-{number}": SECURE_TRAIN for number in range(3)}

    with pytest.raises(SecureAggregationError, match=r"sites are left.*site-0: late.*continue with --resume"):
        secure_round(sites)


def test_a_round_begun_again_with_other_sites_is_another_round(sites: Sites) -> None:
    """A driver that died after the masks came, with a site away, begins again when that site is back."""
    sites.away = {"site-3": SECURE_KEYS}
    secure_round(sites, context=b"first start")
    sites.away = {}

    with pytest.raises(SecureAggregationError):
        secure_round(sites, context=b"first start")
    mean, left_out = secure_round(sites, context=b"second start")

    assert left_out == [] and len(mean.summaries) == len(SITES)


def test_a_site_that_says_nonsense_of_its_training_is_left_out(sites: Sites) -> None:
    def train(task: RoundTask, site: Site, state_round: int) -> Reply:
        summary = TrainingSummary(
            num_examples=-20 if site.name == "site-2" else 5, num_steps=1, mean_loss=0.5, seconds=0
        )
        return Reply(site=site.name, round=1, update=task.parameters, summary=summary)

    sites.trainer.train = train  # type: ignore[method-assign]

    mean, left_out = secure_round(sites)

    assert [out.site for out in left_out] == ["site-2"] and "site-2" not in mean.summaries


def test_secrets_are_readable_by_their_owner_alone_and_a_new_round_replaces_them(sites: Sites) -> None:
    secure_round(sites)
    secure_round(sites, round=2)

    files = [path for path in sites.trainer.state_root.rglob("*") if path.is_file()]
    assert len(files) == len(SITES)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_round_loop_takes_the_mean_and_knows_no_single_norm(sites: Sites) -> None:
    strategy = MeanStrategy(aggregation="by_examples")
    settings = RoundSettings(participation=1.0, early_stop=None, rounds=2, aggregation="by_examples")

    def train(task: RoundTask, assignments: Any) -> Iterator[SecureMean | LeftOut]:
        return train_secure_round(
            sites.ask, task, assignments, SETTINGS, by_examples=True, context=b"job", timeout_seconds=60
        )

    def score(parameters: Any) -> Score:
        return Score(accuracy=0.5, loss=1.0)

    start = initial_state(START, strategy, score)
    states = list(
        run_rounds(start, sites=SITES, settings=settings, strategy=strategy, seed=7, train=train, evaluate=score)
    )
    for state in states:
        record = state.history[-1]
        assert [site.site for site in record.sites] == [site.name for site in SITES]
        assert {site.update_norm for site in record.sites} == {None}

    assert sites.trainer.trained == 2 * len(SITES)
    assert states[-1].parameters[0] == pytest.approx(START[0] + 2 * 0.0043333, abs=1e-5)


def test_every_message_of_a_secure_round_can_be_asked_again(sites: Sites) -> None:
    """A worker that died after its answer was lost is asked once more."""

    def twice(contents: Any, message_type: str, timeout_seconds: float) -> Any:
        first = dict(sites.ask(contents, message_type, timeout_seconds))
        second = dict(sites.ask(contents, message_type, timeout_seconds))
        for site in first:
            same = first[site].config_records["secure"]["message"] == second[site].config_records["secure"]["message"]
            assert same, f"{message_type} gave another message"
        return iter(second.items())

    outcomes = list(
        train_secure_round(
            twice,
            RoundTask(round=1, parameters=START),
            [Assignment(site=site, state_round=0) for site in SITES],
            SETTINGS,
            by_examples=False,
            context=b"job",
            timeout_seconds=60,
        )
    )
    assert isinstance(outcomes[-1], SecureMean)
    assert set(ANSWERS) >= {SECURE_KEYS, SECURE_SHARES, SECURE_TRAIN, SECURE_UNMASK}
