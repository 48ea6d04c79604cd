"""Metrics against scikit-learn, against figures worked by hand, and against their own laws."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as sk

from fl.errors import GliofedError
from fl.evaluation.metrics import (
    EvaluationReport,
    confusion_matrix,
    evaluate,
    evaluate_paired,
    expected_calibration_error,
    metrics_from_confusion,
    wilson_interval,
)
from fl.types import CLASSES

confusions = arrays(np.int64, (4, 4), elements=st.integers(0, 40))


def _answers(seed: int, num_examples: int = 301) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, num_examples)
    logits = rng.normal(0, 1.5, (num_examples, 4))
    logits[np.arange(num_examples), labels] += 1.2
    return labels, logits


@pytest.mark.parametrize("seed", range(5))
def test_every_rate_agrees_with_scikit_learn(seed: int) -> None:
    labels, logits = _answers(seed)
    predicted = logits.argmax(1)
    ours = evaluate(labels, logits, CLASSES)
    precision, recall, f1, support = sk.precision_recall_fscore_support(labels, predicted, labels=range(4))
    cells = sk.multilabel_confusion_matrix(labels, predicted, labels=range(4))
    specificity = cells[:, 0, 0] / cells[:, 0].sum(1)

    assert ours.accuracy == pytest.approx(sk.accuracy_score(labels, predicted))
    assert np.array(ours.confusion).tolist() == sk.confusion_matrix(labels, predicted).tolist()
    assert [c.support for c in ours.per_class] == support.tolist()
    for name, theirs in [
        ("precision", precision),
        ("recall", recall),
        ("f1", f1),
        ("specificity", specificity),
    ]:
        assert [getattr(c, name) for c in ours.per_class] == pytest.approx(theirs.tolist())
        assert getattr(ours, f"macro_{name}") == pytest.approx(theirs.mean())
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert ours.loss == pytest.approx(sk.log_loss(labels, probabilities))
    assert ours.undefined == ()


def test_a_class_never_seen_and_never_predicted_counts_as_zero_and_is_named() -> None:
    ours = metrics_from_confusion([[3, 1, 0], [0, 4, 0], [0, 0, 0]], ("a", "b", "c"))

    assert ours.undefined == ("precision:c", "recall:c", "f1:c")
    assert ours.macro_recall == pytest.approx((0.75 + 1 + 0) / 3)
    labels, predicted = [0] * 4 + [1] * 4, [0, 0, 0, 1] + [1] * 4
    theirs = sk.f1_score(labels, predicted, labels=[0, 1, 2], average="macro", zero_division=0.0)
    assert ours.macro_f1 == pytest.approx(theirs)


def test_one_class_alone_has_no_specificity() -> None:
    assert "specificity:a" in metrics_from_confusion([[5, 1], [0, 0]], ("a", "b")).undefined


def test_wilson_interval_gives_the_published_example() -> None:
    # Newcombe 1998, table I, score method without continuity correction.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(n=st.integers(1, 10_000), data=st.data())
def test_wilson_interval_holds_the_proportion_and_stays_in_range(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    low, high = wilson_interval(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert low < high
    flipped = wilson_interval(n - k, n)
    assert (1 - flipped[1], 1 - flipped[0]) == pytest.approx((low, high))


@given(confusions)
def test_rates_are_rates_and_accuracy_lies_in_its_interval(confusion: np.ndarray) -> None:
    ours = metrics_from_confusion(confusion, CLASSES)
    rates = [getattr(c, r) for c in ours.per_class for r in ("precision", "recall", "specificity", "f1")]
    assert all(0 <= rate <= 1 for rate in rates)
    assert ours.accuracy_interval[0] <= ours.accuracy <= ours.accuracy_interval[1]
    assert ours.num_examples == confusion.sum()


@given(confusions, st.permutations(range(4)))
def test_the_order_of_classes_changes_no_summary(confusion: np.ndarray, order: list[int]) -> None:
    ours = metrics_from_confusion(confusion, CLASSES)
    moved = metrics_from_confusion(confusion[np.ix_(order, order)], [CLASSES[c] for c in order])
    assert moved.accuracy == ours.accuracy
    for rate in ("precision", "recall", "specificity", "f1"):
        assert getattr(moved, f"macro_{rate}") == pytest.approx(getattr(ours, f"macro_{rate}"))
    assert set(moved.undefined) == set(ours.undefined)


@given(confusions)
def test_swapping_truth_and_answer_swaps_precision_and_recall(confusion: np.ndarray) -> None:
    ours, swapped = (metrics_from_confusion(c, CLASSES) for c in (confusion, confusion.T))
    assert [c.precision for c in ours.per_class] == [c.recall for c in swapped.per_class]
    assert [c.f1 for c in ours.per_class] == [c.f1 for c in swapped.per_class]


def test_confidence_that_keeps_its_promise_has_no_calibration_error() -> None:
    probabilities = np.tile([0.75, 0.25], (4, 1))
    assert expected_calibration_error([0, 0, 0, 1], probabilities) == pytest.approx(0)
    assert expected_calibration_error([1, 1, 1, 1], probabilities) == pytest.approx(0.75)


def test_bins_are_not_allowed_to_cancel_each_other() -> None:
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4]])
    # One is too sure by 0.9, the other too modest by 0.4; they sit in different bins.
    assert expected_calibration_error([1, 0], probabilities) == pytest.approx((0.9 + 0.4) / 2)


@given(st.floats(-1e6, 1e6), st.integers(0, 99))
def test_adding_a_constant_to_the_logits_changes_nothing(constant: float, seed: int) -> None:
    labels, logits = _answers(seed, 20)
    ours, moved = evaluate(labels, logits, CLASSES), evaluate(labels, logits + constant, CLASSES)
    assert moved.confusion == ours.confusion
    assert moved.loss == pytest.approx(ours.loss, abs=1e-6)


def test_extreme_logits_do_not_overflow() -> None:
    ours = evaluate([0, 1], [[1e30, 0], [1e30, -1e30]], ("a", "b"))
    assert ours.loss is not None and math.isfinite(ours.loss)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_diverged_model_is_refused_with_its_row(poison: float) -> None:
    labels, logits = _answers(1, 10)
    logits[7, 2] = poison
    with pytest.raises(GliofedError, match=r"1 of 10 examples are not finite, the first at row 7.*learning rate"):
        evaluate(labels, logits, CLASSES)


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 4], [0, 0], r"labels must lie in \[0, 4\), got 0 to 4"),
        ([0, 1], [-1, 0], "predictions must lie in"),
        ([0, 1], [0], "got 2 labels but 1 predictions"),
        ([0.5], [0], "labels must be a vector of integers, got float64"),
    ],
)
def test_answers_that_do_not_fit_are_refused(labels: list[int], predictions: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confusion_matrix(labels, predictions, 4)


def test_the_paired_report_leaves_out_exactly_the_near_duplicates() -> None:
    labels, logits = _answers(3)
    duplicate = np.arange(len(labels)) % 3 == 0
    report = evaluate_paired(labels, logits, duplicate, CLASSES)
    assert report.as_published == evaluate(labels, logits, CLASSES)
    assert report.deduplicated == evaluate(labels[~duplicate], logits[~duplicate], CLASSES)
    assert report.num_near_duplicates == duplicate.sum()


def test_a_test_set_of_duplicates_alone_leaves_an_honest_nothing() -> None:
    labels, logits = _answers(4, 12)
    left = evaluate_paired(labels, logits, np.ones(12, dtype=bool), CLASSES).deduplicated
    assert (left.num_examples, left.accuracy, left.accuracy_interval, left.loss) == (0, 0.0, (0.0, 1.0), None)
    assert "accuracy" in left.undefined


def test_a_report_whose_numbers_do_not_add_up_is_refused() -> None:
    metrics = metrics_from_confusion(np.eye(4, dtype=int), CLASSES)
    with pytest.raises(ValueError, match="4 examples less 1 near-duplicates must leave the 4"):
        EvaluationReport(as_published=metrics, deduplicated=metrics, num_near_duplicates=1)


def test_json_is_strict_and_complete() -> None:
    labels, logits = _answers(5)
    report = evaluate_paired(labels, logits, np.ones(len(labels), dtype=bool), CLASSES).to_json()
    text = json.dumps(report, allow_nan=False)
    assert json.loads(text) == report
    published = json.loads(text)["as_published"]
    assert [c["name"] for c in published["per_class"]] == list(CLASSES)
    assert sum(map(sum, published["confusion"])) == published["num_examples"] == 301
