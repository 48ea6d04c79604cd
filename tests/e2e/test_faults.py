"""Workers that die or hang, sites that send nonsense, files that are no scans: reported by name and survived."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import Finished, Launch, Workplace

SITE_TIMEOUT_SECONDS = 12


@pytest.fixture(scope="module")
def faulty(workplace: Workplace, launch: Launch, spoilt_data: Path) -> tuple[str, Finished]:
    """A run over spoilt data that loses its quorum to a hanging worker, and goes on, with one hanging again, after
    the quorum was lowered. Returns what the first attempt said, and the finished run."""
    folder = workplace.folder / "faulty"
    job = workplace.job("faulty", root=str(spoilt_data))
    common = ("train", job, "--run-dir", folder, "--resume", "--set", f"fl.site_timeout_seconds={SITE_TIMEOUT_SECONDS}")

    command = launch(*common, "--set", "fl.min_clients=4")
    command.wait_for_worker("train").send_signal(signal.SIGSTOP)
    assert command.wait() == 1, command.output
    complaint = command.errors

    command = launch(*common)
    command.wait_for_worker("train").send_signal(signal.SIGSTOP)
    return complaint, command.finish(folder)


def test_a_killed_worker_is_replaced_and_its_site_is_retried(reference: Finished, repeated: Finished) -> None:
    assert repeated.event_names == reference.event_names, "a site was left out"
    assert repeated.weights == reference.weights


def test_too_few_replies_stop_the_job_with_the_reason(faulty: tuple[str, Finished]) -> None:
    complaint, _ = faulty
    assert "round 1: 3 usable replies, fl.min_clients is 4" in complaint
    assert f"-00: late: no reply within {SITE_TIMEOUT_SECONDS} s" in complaint
    assert "--resume" in complaint
    assert "Traceback" not in complaint


def test_a_late_site_is_left_out_and_named(faulty: tuple[str, Finished]) -> None:
    _, run = faulty
    (out,) = [event for event in run.events if event["event"] == "left_out"]
    assert out["reason"].startswith("late")
    assert f"left out {out['site']}: late" in run.output
    result = run.result
    assert result["arms"]["holdout"]["history"][out["round"] - 1]["left_out"] == [
        {"site": out["site"], "reason": out["reason"]}
    ]
    assert {site["name"]: site["failures"] for site in result["sites"]}[out["site"]] == 1
    assert out["site"] in (run.folder / "report.html").read_text()


def test_files_that_are_no_scans_are_reported_and_harm_nothing(faulty: tuple[str, Finished]) -> None:
    _, run = faulty
    reasons = {entry["path"].rpartition("/")[2]: entry["reason"] for entry in run.result["quarantined"]}
    assert reasons == {
        "truncated.jpg": "truncated",
        "text.jpg": "not_an_image",
        "tiny.png": "too_small",
        "empty.jpg": "empty",
    }
    page = (run.folder / "report.html").read_text()
    assert all(name in page for name in reasons)
    assert {event["reason"] for event in run.events if event["event"] == "quarantined"} == set(reasons.values())


def test_sites_that_send_nan_are_refused_by_name(workplace: Workplace, launch: Launch) -> None:
    folder = workplace.folder / "nan"
    settings = ("scenario=noniid", "shared=null", "model.network.frozen_through=null", "fl.warmup=null")
    overrides = [part for setting in settings for part in ("--set", setting)]
    command = launch(
        "train", workplace.job("tiny"), *overrides, "--set", "fl.local.learning_rate=1e30", "--run-dir", folder
    )
    assert command.wait() == 1, command.output
    assert "round 1: 0 usable replies" in command.errors
    for name in ("glioma", "meningioma", "notumor", "pituitary"):
        assert f"{name}-00: update refused: its update contains NaN or infinity" in command.errors
    assert "Traceback" not in command.errors
