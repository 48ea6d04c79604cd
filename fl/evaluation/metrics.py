"""What a classifier's answers are worth: accuracy, per-class rates, loss, calibration. NumPy alone.

Shape legend: N examples, C classes. A confusion matrix has true classes in rows, predicted ones in columns.

Convention for zero division: a rate without a denominator (a class without examples, or never predicted) is
0.0, takes part in the macro mean as 0.0, and is named in `undefined`, for example "recall:glioma".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fl.errors import GliofedError

NUM_CALIBRATION_BINS = 15
Z_95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassMetrics:
    """One class against the rest. recall is sensitivity; support is the number of examples of this class."""

    name: str
    support: int
    precision: float
    recall: float
    specificity: float
    f1: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassificationMetrics:
    """Everything reported about one set of answers.

    accuracy_interval: 95 % Wilson score interval of accuracy. It takes examples as independent; slices of one
        patient are not, so on slices it is narrower than the truth.
    macro_*: unweighted means over all classes; macro_f1 is the mean of the classes' F1, as in scikit-learn.
    loss: mean cross-entropy in nats, None where there were no logits. calibration_error: see
        `expected_calibration_error`, None likewise.
    """

    num_examples: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    macro_precision: float
    macro_recall: float
    macro_specificity: float
    macro_f1: float
    per_class: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    loss: float | None = None
    calibration_error: float | None = None
    undefined: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a matrix that is not square, or does not match the classes and the number of examples."""
        num_classes = len(self.per_class)
        if [len(row) for row in self.confusion] != [num_classes] * num_classes:
            raise ValueError(f"confusion must be {num_classes} x {num_classes}, one row per class of per_class")
        if sum(map(sum, self.confusion)) != self.num_examples:
            raise ValueError(f"confusion sums to {sum(map(sum, self.confusion))}, num_examples is {self.num_examples}")

    def to_json(self) -> dict[str, object]:
        """Return plain dicts, lists and numbers; never NaN or infinity."""
        return _json_object(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationReport:
    """Two answers for one test set: all of it, and what is left without copies of training images."""

    as_published: ClassificationMetrics
    deduplicated: ClassificationMetrics
    num_near_duplicates: int

    def __post_init__(self) -> None:
        """Refuse numbers that do not add up."""
        left = self.as_published.num_examples - self.num_near_duplicates
        if self.num_near_duplicates < 0 or left != self.deduplicated.num_examples:
            raise ValueError(
                f"{self.as_published.num_examples} examples less {self.num_near_duplicates} near-duplicates "
                f"must leave the {self.deduplicated.num_examples} that were evaluated as deduplicated"
            )

    def to_json(self) -> dict[str, object]:
        """Return plain dicts, lists and numbers."""
        return _json_object(self)


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Return counts [C, C], true classes in rows, of two integer vectors [N] with values in [0, C)."""
    true_N = _class_indices(labels, num_classes, "labels")
    predicted_N = _class_indices(predictions, num_classes, "predictions")
    if true_N.shape != predicted_N.shape:
        raise ValueError(f"got {true_N.size} labels but {predicted_N.size} predictions; they must pair up")
    counts = np.bincount(true_N * num_classes + predicted_N, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def metrics_from_confusion(
    confusion: ArrayLike,
    class_names: Sequence[str],
    *,
    loss: float | None = None,
    calibration_error: float | None = None,
) -> ClassificationMetrics:
    """Compute every rate from counts [C, C]; what needs logits is passed through."""
    counts = np.asarray(confusion, dtype=np.int64)
    if counts.shape != (len(class_names),) * 2 or (counts < 0).any():
        raise ValueError(
            f"a confusion matrix of {len(class_names)} classes is square with counts >= 0, got shape {counts.shape}"
        )
    hit, actual, predicted, total = counts.diagonal(), counts.sum(1), counts.sum(0), int(counts.sum())
    negatives = total - actual
    undefined: list[str] = []
    rates = {
        "precision": _ratios("precision", hit, predicted, class_names, undefined),
        "recall": _ratios("recall", hit, actual, class_names, undefined),
        "specificity": _ratios("specificity", negatives - (predicted - hit), negatives, class_names, undefined),
        "f1": _ratios("f1", 2 * hit, actual + predicted, class_names, undefined),
    }
    if total == 0:
        undefined.append("accuracy")
    return ClassificationMetrics(
        num_examples=total,
        accuracy=int(hit.sum()) / total if total else 0.0,
        accuracy_interval=wilson_interval(int(hit.sum()), total),
        per_class=tuple(
            ClassMetrics(name=name, support=int(actual[c]), **{rate: float(of[c]) for rate, of in rates.items()})
            for c, name in enumerate(class_names)
        ),
        confusion=tuple(tuple(int(count) for count in row) for row in counts),
        loss=loss,
        calibration_error=calibration_error,
        undefined=tuple(undefined),
        **{f"macro_{rate}": float(of.mean()) for rate, of in rates.items()},
    )


def evaluate(labels_N: ArrayLike, logits_NC: ArrayLike, class_names: Sequence[str]) -> ClassificationMetrics:
    """Compare logits with labels; the predicted class is the largest logit, the first of equals.

    Zero examples are allowed (every test image may be a near-duplicate); loss and calibration error are then
    None.
    Raises GliofedError when a logit is NaN or infinite: such a model has no answer to count.
    """
    logits = np.asarray(logits_NC, dtype=np.float64).reshape(-1, len(class_names))
    labels = _class_indices(labels_N, len(class_names), "labels")
    if len(labels) != len(logits):
        raise ValueError(f"got {len(labels)} labels for logits of {len(logits)} examples; they must pair up")
    broken_N = ~np.isfinite(logits).all(axis=1)
    if broken_N.any():
        raise GliofedError(
            f"logits of {int(broken_N.sum())} of {len(logits)} examples are not finite, the first at row "
            f"{int(broken_N.argmax())}: the model has diverged; resume from an earlier round with a lower "
            f"learning rate"
        )
    confusion = confusion_matrix(labels, logits.argmax(axis=1), len(class_names))
    if not len(labels):
        return metrics_from_confusion(confusion, class_names)
    log_probabilities = _log_softmax(logits)
    return metrics_from_confusion(
        confusion,
        class_names,
        loss=float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        calibration_error=expected_calibration_error(labels, np.exp(log_probabilities)),
    )


def evaluate_paired(
    labels_N: ArrayLike, logits_NC: ArrayLike, near_duplicate_N: ArrayLike, class_names: Sequence[str]
) -> EvaluationReport:
    """Evaluate all examples, and again those that are no near-duplicate of a training image.

    near_duplicate_N: bool [N], true where some training site holds the image or one very like it.
    """
    duplicate = np.asarray(near_duplicate_N)
    labels, logits = np.asarray(labels_N), np.asarray(logits_NC)
    if duplicate.dtype != np.bool_ or duplicate.shape != labels.shape:
        raise ValueError(f"near_duplicate_N must be bool {labels.shape}, got {duplicate.dtype} {duplicate.shape}")
    return EvaluationReport(
        as_published=evaluate(labels, logits, class_names),
        deduplicated=evaluate(labels[~duplicate], logits[~duplicate], class_names),
        num_near_duplicates=int(duplicate.sum()),
    )


def expected_calibration_error(
    labels_N: ArrayLike, probabilities_NC: ArrayLike, *, num_bins: int = NUM_CALIBRATION_BINS
) -> float:
    """Return the mean gap between confidence and accuracy over equal-width bins (lower, upper] of confidence.

    Confidence is the largest probability; gaps are weighted by the examples in their bin; N is at least 1.
    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2.
    """
    probabilities = np.asarray(probabilities_NC, dtype=np.float64)
    confidence_N = probabilities.max(axis=1)
    correct_N = probabilities.argmax(axis=1) == np.asarray(labels_N)
    bin_N = np.clip(np.ceil(confidence_N * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    surplus_of_bin = np.bincount(bin_N, weights=confidence_N - correct_N, minlength=num_bins)
    return float(np.abs(surplus_of_bin).sum() / len(confidence_N))


def wilson_interval(num_correct: int, num_examples: int, *, z: float = Z_95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion; (0, 1) without examples.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if num_examples == 0:
        return 0.0, 1.0
    proportion, shrink = num_correct / num_examples, 1 + z * z / num_examples
    centre = proportion + z * z / (2 * num_examples)
    spread = z * math.sqrt(proportion * (1 - proportion) / num_examples + (z / (2 * num_examples)) ** 2)
    # Rounding may step past the proportion itself where it is 0 or 1.
    low, high = (centre - spread) / shrink, (centre + spread) / shrink
    return max(0.0, min(low, proportion)), min(1.0, max(high, proportion))


def _json_object(metrics: ClassificationMetrics | EvaluationReport) -> dict[str, object]:
    plain: dict[str, object] = _with_lists(asdict(metrics))
    return plain


def _with_lists(value: Any) -> Any:
    """Return the value with tuples as lists, so that it equals what comes back from a JSON file."""
    if isinstance(value, dict):
        return {key: _with_lists(item) for key, item in value.items()}
    return [_with_lists(item) for item in value] if isinstance(value, tuple) else value


def _log_softmax(logits_NC: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits_NC - logits_NC.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _ratios(
    rate: str,
    above: NDArray[np.int64],
    below: NDArray[np.int64],
    class_names: Sequence[str],
    undefined: list[str],
) -> NDArray[np.float64]:
    """Return above / below per class, 0.0 where below is 0; names those in `undefined`."""
    undefined.extend(f"{rate}:{name}" for name, count in zip(class_names, below, strict=True) if count == 0)
    return np.divide(above, below, out=np.zeros(len(class_names)), where=below != 0)


def _class_indices(values: ArrayLike, num_classes: int, what: str) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"{what} must be a vector of integers, got {array.dtype} of shape {array.shape}")
    if array.size and (array.min() < 0 or array.max() >= num_classes):
        raise ValueError(f"{what} must lie in [0, {num_classes}), got {array.min()} to {array.max()}")
    return array.astype(np.int64)
