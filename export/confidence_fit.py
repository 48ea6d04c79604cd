"""Fitting a `Confidence` where the model is exported, and measuring what it is worth.

Every figure on the validation scans is cross-fitted: each fifth of them is judged by what the other four say. They are
still the scans on which the best round was chosen, so figures on scans that chose nothing (`measure_confidence`) are
the better ones. Slices of one patient are no independent scans; all promises here take them as such.

NumPy alone. Shape legend: N M scans or images, C classes, E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.calibration import (
    conformal_margin,
    fit_temperature,
    least_confidence,
    measure,
    softmax,
    tempered,
)
from export.confidence import Confidence
from export.familiarity import fit_familiarity, highest_usual, separation

MIN_SCANS = 40
MIN_SCANS_OF_A_CLASS = 5
"""With fewer, nothing is said of how often answers are right: not calibrated."""

COVERAGES = (0.99, 0.95, 0.9)
"""Of the sets of classes: the first that so many scans can promise. At 0.95 a model that is right more often than that
would never name a second class."""

MAX_ERRORS = (0.03, 0.05, 0.1, 0.2)
"""Of the answers given: the first that these scans can promise. Where they promise none, nothing is answered."""

DOUBT = 0.05
"""How probable it may be that the promised error is not kept."""

ACCEPTED = 0.975
"""Share of scans like the validation scans that are not called strange."""

_NUM_FOLDS = 5

Scores = NDArray[np.floating]
Labels = NDArray[np.integer]


def fit_confidence(
    logits_NC: Scores,
    embedding_NE: Scores,
    labels_N: Labels,
    *,
    reference_ME: Scores,
    int8_embedding_NE: Scores | None = None,
    strange: Mapping[str, Scores] | None = None,
) -> Confidence:
    """Return what validation scans that no site trained on tell of the model's answers.

    reference_ME: embeddings of training scans, some hundreds. int8_embedding_NE: the quantized model's of the
    validation scans. strange: embeddings [M,E] of images that should be called strange, by kind, to measure whether
    they are. A part for which the scans are too few is None.
    """
    rules = _fit_rules(logits_NC, labels_N, COVERAGES, MAX_ERRORS) if _are_enough(logits_NC, labels_N) else {}
    familiarity = fit_familiarity(reference_ME)
    usual_N = None if familiarity is None else familiarity.strangeness(embedding_NE)
    strange_above = None if usual_N is None else highest_usual(usual_N, ACCEPTED)
    kinds: dict[str, dict[str, float]] = {}
    if familiarity is not None and usual_N is not None and strange_above is not None:
        rules |= {"familiarity": familiarity, "accepted": ACCEPTED, "strange_above": max(strange_above, 1e-6)}
        if int8_embedding_NE is not None:
            above = highest_usual(familiarity.strangeness(int8_embedding_NE), ACCEPTED)
            rules["strange_above_int8"] = None if above is None else max(above, 1e-6)
        for kind, images_ME in (strange or {}).items():
            score_M = familiarity.strangeness(images_ME)
            flagged = float((score_M > rules["strange_above"]).mean())
            kinds[kind] = {"num_images": len(score_M), "flagged": flagged, "auroc": separation(usual_N, score_M)}
    quality = {
        "num_validation_scans": len(labels_N),
        "validation_scans_of_class": np.bincount(labels_N, minlength=logits_NC.shape[1]).tolist(),
        "num_reference_scans": len(reference_ME),
        "as_scored": _reliability(logits_NC, labels_N, 1.0) if len(labels_N) else None,
        "cross_fitted": _cross_fitted(logits_NC, labels_N, rules) if "temperature" in rules else None,
        "strange_images": kinds,
    }
    return Confidence(num_classes=logits_NC.shape[1], quality=quality, **rules)


def measure_confidence(
    confidence: Confidence, logits_NC: Scores, embedding_NE: Scores, labels_N: Labels
) -> dict[str, Any]:
    """Return what it is worth on other labelled scans, at least one, as plain numbers."""
    judgement = confidence.judge(logits_NC, embedding_NE)
    figures = _reliability(logits_NC, labels_N, confidence.temperature or 1.0)
    figures |= _decisions(logits_NC, labels_N, judgement.in_set_NC, judgement.unsure_N)
    figures["called_strange"] = None if judgement.strangeness_N is None else float(judgement.strange_N.mean())
    return figures


def _are_enough(logits_NC: Scores, labels_N: Labels) -> bool:
    counts_C = np.bincount(labels_N, minlength=logits_NC.shape[1])
    return len(labels_N) >= MIN_SCANS and bool((counts_C >= MIN_SCANS_OF_A_CLASS).all())


def _fit_rules(
    logits_NC: Scores, labels_N: Labels, coverages: tuple[float, ...], max_errors: tuple[float, ...]
) -> dict[str, Any]:
    """Return the arguments of a `Confidence` that rest on labels; the first coverage and error that can be promised."""
    rules: dict[str, Any] = {"temperature": fit_temperature(logits_NC, labels_N)}
    for coverage in coverages:
        if (margin := conformal_margin(logits_NC, labels_N, coverage)) is not None:
            rules |= {"coverage": coverage, "set_margin": margin}
            break
    probability_N = softmax(tempered(logits_NC, rules["temperature"])).max(axis=1)
    wrong_N = logits_NC.argmax(axis=1) != labels_N
    for max_error in max_errors:
        if (found := least_confidence(probability_N, wrong_N, max_error, DOUBT)) is not None:
            rules |= {"max_error": max_error, "abstain_below": found[0]}
            break
    return rules


def _cross_fitted(logits_NC: Scores, labels_N: Labels, rules: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures where each scan is judged by rules that were fitted on the other folds.

    The sets promise the same coverage, and rule nothing out where a fold is too small for it. Fewer scans may be able
    to promise less of the error.
    """
    temperature_N1, unsure_N = np.ones((len(labels_N), 1)), np.zeros(len(labels_N), np.bool_)
    in_set_NC = np.ones(logits_NC.shape, np.bool_)
    coverages = (rules["coverage"],) if "coverage" in rules else ()
    fold_N = _folds(labels_N)
    for fold in range(_NUM_FOLDS):
        held_N = fold_N == fold
        fitted = _fit_rules(logits_NC[~held_N], labels_N[~held_N], coverages, MAX_ERRORS)
        confidence = Confidence(num_classes=logits_NC.shape[1], **fitted)
        judgement = confidence.judge(logits_NC[held_N], np.zeros((int(held_N.sum()), 1)))
        temperature_N1[held_N] = fitted["temperature"]
        in_set_NC[held_N], unsure_N[held_N] = judgement.in_set_NC, judgement.unsure_N
    return _reliability(logits_NC, labels_N, temperature_N1) | _decisions(logits_NC, labels_N, in_set_NC, unsure_N)


def _folds(labels_N: Labels) -> NDArray[np.int64]:
    """Return each scan's fold: neighbours of a class in one, since neighbouring slices are often alike."""
    fold_N = np.zeros(len(labels_N), np.int64)
    for label in np.unique(labels_N):
        rows = np.flatnonzero(labels_N == label)
        fold_N[rows] = np.arange(len(rows)) * _NUM_FOLDS // len(rows)
    return fold_N


def _reliability(logits_NC: Scores, labels_N: Labels, temperature: float | NDArray[np.float64]) -> dict[str, Any]:
    found = measure(logits_NC, labels_N, temperature)
    return {
        "num_scans": found.num_scans,
        "loss": found.loss,
        "brier": found.brier,
        "calibration_error": found.error,
        "bins": [asdict(bin_) for bin_ in found.bins],
    }


def _decisions(
    logits_NC: Scores, labels_N: Labels, in_set_NC: NDArray[np.bool_], unsure_N: NDArray[np.bool_]
) -> dict[str, Any]:
    wrong_N = logits_NC.argmax(axis=1) != labels_N
    sizes_N = in_set_NC.sum(axis=1)
    return {
        "set_coverage": float(in_set_NC[np.arange(len(labels_N)), labels_N].mean()),
        "set_mean_size": float(sizes_N.mean()),
        "set_of_one": float((sizes_N == 1).mean()),
        "answered": float((~unsure_N).mean()),
        "error_of_answered": float(wrong_N[~unsure_N].mean()) if (~unsure_N).any() else None,
        "error_of_all": float(wrong_N.mean()),
    }
