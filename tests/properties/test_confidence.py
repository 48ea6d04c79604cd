"""What holds of confidence whatever the model says."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from export.calibration import conformal_margin, fit_temperature, margins, softmax, tempered
from export.confidence import Confidence
from export.confidence_fit import fit_confidence
from export.familiarity import fit_familiarity

ANY_LOGITS = hnp.arrays(np.float32, (3, 4), elements=st.floats(-(2.0**120), 2.0**120, width=32))
ANY_EMBEDDING = hnp.arrays(np.float32, (3, 16), elements=st.floats(0, 2.0**127, width=32))
REFERENCE = np.random.default_rng(0).random((60, 16)).astype(np.float32)
FAMILIARITY = fit_familiarity(REFERENCE)


@settings(deadline=None, max_examples=80)
@given(ANY_LOGITS, ANY_EMBEDDING, st.floats(0.05, 20), st.floats(0, 50))
def test_judgements_are_finite_distributions_whose_set_holds_the_top_class(
    logits_NC: np.ndarray, embedding_NE: np.ndarray, temperature: float, margin: float
) -> None:
    confidence = Confidence(
        num_classes=4,
        temperature=temperature,
        coverage=0.9,
        set_margin=margin,
        accepted=0.975,
        strange_above=2.0,
        familiarity=FAMILIARITY,
    )
    judgement = confidence.judge(logits_NC, embedding_NE)
    assert np.isfinite(judgement.probabilities_NC).all() and (judgement.probabilities_NC >= 0).all()
    np.testing.assert_allclose(judgement.probabilities_NC.sum(axis=1), 1, atol=1e-6)
    assert ((judgement.uncertainty_N >= 0) & (judgement.uncertainty_N <= 1)).all()
    assert judgement.in_set_NC[np.arange(3), logits_NC.argmax(axis=1)].all()
    assert judgement.strangeness_N is not None
    assert np.isfinite(judgement.strangeness_N).all() and (judgement.strangeness_N >= 0).all()


@settings(deadline=None, max_examples=60)
@given(ANY_LOGITS, st.floats(0.05, 20))
def test_temperature_keeps_the_order_of_classes(logits_NC: np.ndarray, temperature: float) -> None:
    probabilities_NC = softmax(tempered(logits_NC, temperature))
    order_NC = np.argsort(logits_NC, axis=1, kind="stable")
    assert (np.diff(np.take_along_axis(probabilities_NC, order_NC, axis=1), axis=1) >= 0).all()
    rows = np.arange(len(logits_NC))
    assert (probabilities_NC[rows, logits_NC.argmax(axis=1)] == probabilities_NC.max(axis=1)).all()


@settings(deadline=None, max_examples=60)
@given(ANY_LOGITS, st.floats(0.1, 10))
def test_a_colder_model_is_surer_and_the_sets_do_not_care(logits_NC: np.ndarray, temperature: float) -> None:
    warm, cold = (softmax(tempered(logits_NC, t)).max(axis=1) for t in (temperature, temperature / 2))
    assert (cold >= warm - 1e-6).all()
    assert (margins(logits_NC) >= 0).all() and (margins(logits_NC).min(axis=1) == 0).all()


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.9, 0.95]), st.integers(40, 120))
def test_sets_cover_exchangeable_scans(seed: int, coverage: float, num: int) -> None:
    """Mean over many splits: at least the coverage, and within 1 / (N + 1) of it; four standard errors allowed."""
    rng, trials = np.random.default_rng(seed), 1500
    logits = rng.normal(size=(trials, num + 1, 4)) * 2
    labels = rng.integers(0, 4, (trials, num + 1))  # the model may know nothing at all
    covered = []
    for logits_NC, labels_N in zip(logits, labels, strict=True):
        margin = conformal_margin(logits_NC[:num], labels_N[:num], coverage)
        assert margin is not None
        covered.append(margins(logits_NC[num:])[0, labels_N[num]] <= margin)
    spread = 4 * np.sqrt(coverage * (1 - coverage) / trials)
    assert coverage - spread <= np.mean(covered) <= coverage + 1 / (num + 1) + spread


@settings(deadline=None, max_examples=15)
@given(
    hnp.arrays(np.float32, (60, 3), elements=st.floats(-100, 100, width=32)),
    hnp.arrays(np.int64, 60, elements=st.integers(0, 2)),
    st.integers(0, 60),
)
def test_any_validation_scans_give_a_confidence_that_comes_back_from_its_files(
    logits_NC: np.ndarray, labels_N: np.ndarray, num: int
) -> None:
    embedding_NE = np.abs(np.random.default_rng(num).normal(size=(60, 16)))
    confidence = fit_confidence(logits_NC[:num], embedding_NE[:num], labels_N[:num], reference_ME=REFERENCE)
    assert Confidence.from_files(confidence.to_files()).to_files() == confidence.to_files()
    assert 0.04 < fit_temperature(logits_NC[:num], labels_N[:num]) < 23
