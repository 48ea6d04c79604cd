"""What a release measured, on the report page: every figure is there, and a missing one leaves a whole page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.evaluation.metrics import evaluate_paired
from fl.types import CLASSES
from service.report import write_report
from service.report_release import Bin, Explanations, Reliability
from service.report_reliability import reliability_chart

SECTIONS = ("confidence", "explanations", "int8")


def figures(**decisions: float | None) -> dict[str, Any]:
    bins = [
        {"confidence": 0.55, "accuracy": 0.5, "count": 10},
        {"confidence": 0.93, "accuracy": 0.96, "count": 90},
        {"confidence": 0.75, "accuracy": 0.7, "count": 1},
    ]
    return {"num_scans": 101, "loss": 0.2345, "brier": 0.1234, "calibration_error": 0.0377, "bins": bins, **decisions}


def release() -> dict[str, Any]:
    """Return made-up figures, each of which is found on the page once."""
    decided = {"set_coverage": 0.9871, "set_mean_size": 1.37, "set_of_one": 0.7713, "answered": 0.9123}
    errors = {"error_of_answered": 0.0159, "error_of_all": 0.0617}
    baseline = {"energy": 0.0411, "pointing": 0.0522, "deletion": 0.2833, "insertion": 0.2744}
    return {
        "confidence": {
            "validation": {
                "num_validation_scans": 101,
                "as_scored": figures() | {"calibration_error": 0.0819},
                "cross_fitted": figures(**decided, **errors),
                "strange_images": {
                    "slice inverted": {"num_images": 24, "flagged": 0.7083, "auroc": 0.9517},
                    "noise": {"num_images": 24, "flagged": 1.0, "auroc": 1.0},
                },
            },
            "test": figures(**decided, **errors, called_strange=0.0231) | {"calibration_error": 0.0426},
        },
        "rules": {"temperature": 1.1, "coverage": 0.99, "max_error": 0.03, "abstain_below": 0.86, "accepted": 0.975},
        "explanations": {
            "num_scans": 36,
            "num_curves": 9,
            "num_predicted": 31,
            "lesion_share": 0.0366,
            "class_maps": {"energy": 0.2155, "pointing": 0.6377, "deletion": 0.1488, "insertion": 0.4199},
            "random": baseline,
            "centre": baseline | {"energy": 0.0988, "pointing": 0.1311},
            "energy_interval": [0.1812, 0.2534],
            "pointing_interval": [0.4721, 0.8017],
        },
        "int8": {
            "macro_f1_float32": 0.9512,
            "macro_f1_int8": 0.9489,
            "drop_points": 0.23,
            "agreement": 0.9934,
            "largest_probability_difference": 0.0746,
            "maps_cosine_median": 0.954,
            "maps_cosine_lowest": 0.873,
            "maps_energy_ratio": 0.966,
            "num_images": 101,
            "accepted": True,
        },
    }


def page(folder: Path, released: object, *, data_kind: str = "phantom") -> str:
    """Write the report of a small run and return its text."""
    folder.mkdir(parents=True, exist_ok=True)
    test = evaluate_paired(np.arange(8) % 4, np.eye(4)[np.arange(8) % 4], np.zeros(8, dtype=bool), CLASSES)
    result = {
        "format": 1,
        "run_id": "run",
        "name": "run",
        "scenario": "iid",
        "data_kind": data_kind,
        "created": "2026-03-05T14:02:12+00:00",
        "arms": {"iid": {"role": "scenario", "rounds_run": 1, "test": test.to_json()}},
    }
    if released is not None:
        result["release"] = released
    (folder / "result.json").write_text(json.dumps(result))
    return write_report(folder).read_text(encoding="utf-8")


def section(text: str, name: str) -> str:
    """Return a section's words, tags left out."""
    (found,) = re.findall(rf'<section id="{name}".*?</section>', text, re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", found)).replace("\u202f", " ")


def test_every_figure_is_on_the_page(tmp_path: Path) -> None:
    text = page(tmp_path, release())
    told = section(text, "confidence")
    for words in ("8.2 %", "3.8 %", "4.3 %", "0.234", "0.123", "98.7 %", "1.37", "77.1 %", "91.2 %", "1.6 %", "6.2 %"):
        assert words in told, words
    assert "aim: 99 %" in told and "at most 3 %" in told and "from 86 % on" in told
    assert re.search(r"noise .*slice inverted 24 70\.8 % 95\.2 %", told), "what is best noticed comes first"
    told = section(text, "explanations")
    for words in (
        "21.6 %",
        "18.1 to 25.3 %",
        "63.8 %",
        "47.2 to 80.2 %",
        "9.9 %",
        "13.1 %",
        "14.9 %",
        "42.0 %",
        "3.7 %",
    ):
        assert words in told, words
    told = section(text, "int8")
    for words in ("95.1 %", "94.9 %", "−0.2 points", "99.3 %", "7.5 points", "0.95, 0.87", "0.97"):
        assert words in told, words
    assert "Left out" not in told
    assert all(f'href="#{name}"' in text for name in SECTIONS)


def test_explanations_say_that_they_are_of_phantoms_whatever_the_model_was_trained_on(tmp_path: Path) -> None:
    told = section(page(tmp_path, release(), data_kind="mri"), "explanations")
    assert "36 phantoms" in re.sub(" +", " ", told) and "phantoms are strange to it" in told


def test_a_run_of_before_has_none_of_these_sections(tmp_path: Path) -> None:
    text = page(tmp_path, None)
    assert not any(f"#{name}" in text or f'id="{name}"' in text for name in SECTIONS)


def _all_undefined(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _all_undefined(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_all_undefined(item) for item in value]
    return None if isinstance(value, float) else value


def _nothing_decided(found: dict[str, Any]) -> None:
    found["confidence"]["validation"]["cross_fitted"] = None
    found["confidence"]["test"] = None


def _answers_nothing(found: dict[str, Any]) -> None:
    for part in (found["confidence"]["validation"]["cross_fitted"], found["confidence"]["test"]):
        part.update(answered=0.0, error_of_answered=None)


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        (lambda found: found.clear(), "confidence", "Not measured: whoever ran this training had no validation scans"),
        (_nothing_decided, "confidence", "Too few validation scans"),
        (_answers_nothing, "confidence", "It answers nothing"),
        (lambda found: found.update(_all_undefined(found)), "explanations", "Figures are missing"),
        (lambda found: found["int8"].update(accepted=False), "int8", "Left out of the bundle"),
        (lambda found: found.pop("rules"), "confidence", "True class is among those not ruled out"),
        (lambda found: found["confidence"]["validation"].pop("strange_images"), "confidence", "Calibration error"),
    ],
)
def test_what_is_missing_leaves_a_whole_page(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], name: str, words: str
) -> None:
    found = release()
    change(found)
    text = page(tmp_path, found)
    assert words in section(text, name)
    for shown in re.findall(rf'<section id="(?:{"|".join(SECTIONS)})".*?</section>', text, re.S):
        assert not re.search(r"\b(nan|None)\b", shown)


def test_a_hostile_kind_of_image_is_only_text(tmp_path: Path) -> None:
    found, name = release(), "<script>alert(1)</script>"
    found["confidence"]["validation"]["strange_images"] = {name: {"num_images": 1, "flagged": 1.0, "auroc": None}}
    assert name not in page(tmp_path, found)


@pytest.mark.parametrize(
    ("energy", "pointing", "verdict"),
    [
        ((0.2, 0.3), (0.4, 0.6), True),
        ((0.1, 0.3), (0.4, 0.6), False),
        ((0.2, 0.3), (0.1, 0.6), False),
        ((None, None), (0.4, 0.6), None),
    ],
)
def test_maps_beat_the_baselines_only_where_both_intervals_lie_above_both(
    energy: tuple[float | None, ...], pointing: tuple[float | None, ...], verdict: bool | None
) -> None:
    known = {"random": {"energy": 0.04, "pointing": 0.05}, "centre": {"energy": 0.15, "pointing": 0.15}}
    found = Explanations.model_validate({**known, "energy_interval": energy, "pointing_interval": pointing})
    assert found.beats_baselines is verdict


shares = st.floats(0, 1)


@given(st.lists(st.tuples(shares, shares, st.integers(0, 10_000)), max_size=15))
def test_spots_lie_in_the_frame_above_the_line_where_more_was_right_than_was_said(
    bins: list[tuple[float, float, int]],
) -> None:
    drawn = [Bin(confidence=said, accuracy=right, count=count) for said, right, count in bins]
    chart = reliability_chart({"test": Reliability(bins=tuple(drawn))})
    kept = sorted((one for one in drawn if one.count), key=lambda one: one.confidence)
    if not kept:
        assert chart is None
        return
    assert chart is not None
    frame, (trace,) = chart.frame, chart.traces
    for one, spot in zip(kept, trace.spots, strict=True):
        assert frame.left <= spot.x <= frame.right and frame.top <= spot.y <= frame.bottom
        exact = frame.y(one.confidence)
        assert (spot.y <= exact) if one.accuracy >= one.confidence else (spot.y >= exact)
    assert max(spot.radius for spot in trace.spots) == trace.spots[np.argmax([one.count for one in kept])].radius
