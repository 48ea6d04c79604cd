"""One undisturbed run, end to end: what it prints, leaves and repeats."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Finished


def test_the_run_folder_holds_all_that_was_promised(reference: Finished) -> None:
    names = {path.name for path in reference.folder.iterdir()}
    assert names >= {"spec.yaml", "events.jsonl", "result.json", "report.html", "bundle", "samples", "checkpoints"}
    assert not [name for name in names if name.endswith(".partial")]
    assert len(list((reference.folder / "samples").glob("*-cam.png"))) == 8
    kept = sorted(path.name for path in (reference.folder / "checkpoints" / "holdout").iterdir())
    assert kept == ["round-0002", "round-0003"]


def test_there_is_a_line_and_an_event_for_every_round(reference: Finished) -> None:
    for number in range(4):
        assert f"   round {number:3d}: validation accuracy" in reference.output
    assert reference.event_names == ["started", "round", "round", "round", "finished"]
    assert "test accuracy" in reference.output
    assert str(reference.folder / "report.html") in reference.output


def test_figures_agree_with_each_other(reference: Finished) -> None:
    result = reference.result
    arm = result["arms"]["holdout"]
    assert result["data_kind"] == "mri"
    assert result["data"]["num_test"] == 32
    # each class has its copy; near-copies are found among the drawn heads besides
    assert result["data"]["exact_test_copies"] == 4
    published, deduplicated = arm["test"]["as_published"], arm["test"]["deduplicated"]
    for metrics, count in ((published, 32), (deduplicated, 32 - result["data"]["near_test_copies"])):
        confusion = np.array(metrics["confusion"])
        assert confusion.sum() == count
        assert metrics["accuracy"] == pytest.approx(np.trace(confusion) / count)
    assert len(arm["history"]) == arm["rounds_run"] == 3
    assert arm["bytes_per_round"] == 4 * arm["bytes_per_site_round"]
    assert [site["rounds_trained"] for site in result["sites"]] == [3, 3, 3, 3]
    assert result["peak_memory_bytes"] < 4 * 2**30


def test_what_the_release_measured_is_in_the_result_and_on_the_page(reference: Finished) -> None:
    metrics = json.loads((reference.folder / "bundle" / "metrics.json").read_text())
    release = reference.result["release"]
    assert release["explanations"] == metrics["explanations"] and release["explanations"]["num_scans"] == 36
    assert release["confidence"] == metrics["confidence"]
    page = (reference.folder / "report.html").read_text()
    assert 'id="confidence"' in page and 'id="explanations"' in page


def test_the_report_is_one_page_that_loads_nothing(reference: Finished) -> None:
    page = (reference.folder / "report.html").read_text()
    assert "holdout" in page
    assert 'src="http' not in page
    assert 'href="http' not in page


def test_a_local_ray_listens_on_loopback_only(reference: Finished) -> None:
    assert reference.listening, "no process was seen to listen"
    assert reference.listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_the_resolved_spec_runs_again_to_the_same_bytes(reference: Finished, repeated: Finished) -> None:
    """Although one of its workers was killed; see the fixture."""
    assert repeated.weights == reference.weights
    first, second = ((run.folder / "spec.yaml").read_text() for run in (reference, repeated))
    assert first == second


def test_a_second_run_computes_no_feature_again(reference: Finished, repeated: Finished) -> None:
    assert reference.store, "the reference run stored no features"
    assert repeated.store == reference.store
