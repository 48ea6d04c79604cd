"""How sure an answer is: fitted on made-up answers whose truth is known, written, read and told."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Callable

import numpy as np
import pytest

from export.calibration import binomial_bound, conformal_margin, fit_temperature, least_confidence, measure, softmax
from export.confidence import ARRAYS_FILE, NUMBERS_FILE, Confidence
from export.confidence_fit import ACCEPTED, fit_confidence, measure_confidence
from export.errors import BundleError
from export.familiarity import MIN_REFERENCE_SCANS, fit_familiarity, highest_usual, separation

NUM_CLASSES, NUM_EMBEDDED = 4, 32


def make_answers(num: int, seed: int = 0, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits_NC and labels_N drawn from softmax(logits / sharpness): calibrated at that temperature."""
    rng = np.random.default_rng(seed)
    logits_NC = rng.normal(scale=3, size=(num, NUM_CLASSES))
    probabilities_NC = softmax(logits_NC).astype(float)
    labels_N = (probabilities_NC.cumsum(axis=1) < rng.random((num, 1))).sum(axis=1).clip(max=NUM_CLASSES - 1)
    return (logits_NC * sharpness).astype(np.float32), labels_N


def make_embedding(num: int, seed: int = 0, *, strange: bool = False) -> np.ndarray:
    """Return embeddings around a few directions, as a network gives them; strange ones lie anywhere."""
    rng = np.random.default_rng(seed)
    if strange:
        return rng.random((num, NUM_EMBEDDED)).astype(np.float32)
    directions = np.random.default_rng(99).random((5, NUM_EMBEDDED)) ** 3
    return (rng.random((num, 5)) @ directions + 0.01 * rng.random((num, NUM_EMBEDDED))).astype(np.float32)


def make_confidence() -> Confidence:
    num = 400
    logits_NC, labels_N = make_answers(num, sharpness=2.0)
    return fit_confidence(
        logits_NC,
        make_embedding(num, 1),
        labels_N,
        reference_ME=make_embedding(200, 2),
        int8_embedding_NE=np.round(make_embedding(num, 1) * 20) / 20,
        strange={"anywhere": make_embedding(30, 3, strange=True)},
    )


@pytest.fixture(scope="module")
def confidence() -> Confidence:
    return make_confidence()


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 2.5])
def test_the_temperature_that_the_labels_were_drawn_at_is_found(sharpness: float) -> None:
    logits_NC, labels_N = make_answers(3000, sharpness=sharpness)
    assert fit_temperature(logits_NC, labels_N) == pytest.approx(sharpness, rel=0.1)
    before, after = (measure(logits_NC, labels_N, temperature) for temperature in (1.0, sharpness))
    assert after.error < 0.03
    assert after.loss <= before.loss and after.brier <= before.brier + 1e-6


def test_few_scans_all_answered_rightly_do_not_make_a_model_certain() -> None:
    logits_NC = np.eye(NUM_CLASSES)[np.arange(40) % NUM_CLASSES] * 4
    assert 0.2 < fit_temperature(logits_NC, np.arange(40) % NUM_CLASSES) < 1


def test_reliability_is_counted_as_defined() -> None:
    logits_NC = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.3, 0.7]]))
    found = measure(logits_NC, np.array([0, 1, 0, 1]), 1.0)
    assert [(b.count, round(b.confidence, 6), b.accuracy) for b in found.bins] == [
        (1, 0.6, 1),
        (1, 0.7, 1),
        (2, 0.9, 0.5),
    ]
    assert found.error == pytest.approx((0.4 + 0.3 + 2 * 0.4) / 4)
    assert found.loss == pytest.approx(-np.log([0.9, 0.1, 0.6, 0.7]).mean())
    assert found.brier == pytest.approx(2 * (0.1**2 + 0.9**2 + 0.4**2 + 0.3**2) / 4)


def test_binomial_bound_is_clopper_and_pearsons() -> None:
    assert binomial_bound(0, 100, 0.05) == pytest.approx(1 - 0.05 ** (1 / 100), abs=1e-6)
    assert binomial_bound(5, 100, 0.05) == pytest.approx(0.1023, abs=1e-3)  # Clopper & Pearson 1934, tables
    assert binomial_bound(0, 0, 0.05) == binomial_bound(3, 3, 0.05) == 1.0


def test_an_error_rate_is_promised_only_where_the_scans_carry_it_and_then_kept() -> None:
    rng = np.random.default_rng(0)
    broken = 0
    for _ in range(60):
        confidence_N = rng.random(600)
        wrong_N = rng.random(600) > confidence_N
        found = least_confidence(confidence_N, wrong_N, 0.1, 0.05)
        if found is not None:
            broken += (1 - found[0]) / 2 > 0.1  # the true error rate above a threshold t is (1 - t) / 2
    assert broken <= 6
    assert least_confidence(np.linspace(0, 1, 20), np.zeros(20, bool), 0.03, 0.05) is None
    assert least_confidence(np.linspace(0, 1, 900), np.ones(900, bool), 0.2, 0.05) is None
    assert least_confidence(np.zeros(0), np.zeros(0, bool), 0.2, 0.05) is None


def test_sets_of_too_few_scans_are_not_promised() -> None:
    logits_NC, labels_N = make_answers(98)
    assert conformal_margin(logits_NC, labels_N, 0.99) is None
    assert conformal_margin(logits_NC, labels_N, 0.95) is not None


def test_what_is_fitted_holds_on_other_scans_and_tells_strange_images(confidence: Confidence) -> None:
    logits_NC, labels_N = make_answers(2000, seed=8, sharpness=2.0)
    figures = measure_confidence(confidence, logits_NC, make_embedding(2000, 9), labels_N)
    assert confidence.calibrated and figures["calibration_error"] < 0.04
    assert figures["set_coverage"] > (confidence.coverage or 1) - 0.015 and figures["set_mean_size"] < NUM_CLASSES
    assert figures["error_of_answered"] < (confidence.max_error or 0) < figures["error_of_all"]
    assert figures["called_strange"] < 3 * (1 - ACCEPTED)
    assert confidence.judge(logits_NC[:30], make_embedding(30, 4, strange=True)).strange_N.all()
    quality = confidence.quality
    assert quality["cross_fitted"]["loss"] < quality["as_scored"]["loss"]
    assert quality["strange_images"]["anywhere"] == {"num_images": 30, "flagged": 1.0, "auroc": 1.0}


@pytest.mark.parametrize("missing", ["scans", "a class"])
def test_too_few_scans_or_a_class_without_any_are_not_called_calibrated(missing: str) -> None:
    logits_NC, labels_N = make_answers(30 if missing == "scans" else 400)
    kept = labels_N != 2 if missing == "a class" else np.ones(30, bool)
    confidence = fit_confidence(
        logits_NC[kept], make_embedding(int(kept.sum())), labels_N[kept], reference_ME=make_embedding(200, 2)
    )
    judgement = confidence.judge(logits_NC, make_embedding(len(logits_NC)))
    assert not confidence.calibrated and confidence.quality["cross_fitted"] is None
    assert judgement.in_set_NC.all() and not judgement.unsure_N.any()
    np.testing.assert_allclose(judgement.probabilities_NC, softmax(logits_NC), rtol=1e-6)
    assert (confidence.strange_above is None) == (missing == "scans"), "30 scans cannot tell what 2.5 % of them exceed"


def test_forty_scans_are_enough_to_say_something() -> None:
    logits_NC, labels_N = make_answers(400, sharpness=2.0)
    rows = np.concatenate([np.flatnonzero(labels_N == label)[:10] for label in range(NUM_CLASSES)])
    confidence = fit_confidence(logits_NC[rows], make_embedding(40), labels_N[rows], reference_ME=make_embedding(40, 2))
    assert confidence.calibrated and confidence.coverage == 0.95 and confidence.familiarity is not None
    assert confidence.strange_above is not None


def test_a_model_that_is_wrong_at_any_probability_is_never_to_be_asked() -> None:
    logits_NC, labels_N = make_answers(200)
    wrong_N = (logits_NC.argmax(axis=1) + 1) % NUM_CLASSES
    confidence = fit_confidence(logits_NC, make_embedding(200), wrong_N, reference_ME=make_embedding(0))
    assert confidence.calibrated and confidence.max_error is None and confidence.familiarity is None
    assert confidence.judge(logits_NC, make_embedding(200)).abstains.all()
    assert labels_N.shape == (200,)


def test_reference_scans_that_are_few_or_all_alike_give_no_statistics() -> None:
    assert fit_familiarity(make_embedding(MIN_REFERENCE_SCANS - 1)) is None
    assert fit_familiarity(np.ones((100, 8), np.float32)) is None
    assert highest_usual(np.arange(38.0), 0.975) is None and highest_usual(np.arange(39.0), 0.975) == 38
    assert separation(np.arange(4.0), np.array([-1.0, 9.0])) == 0.5
    assert separation(np.zeros(3), np.zeros(2)) == 0.5


def test_statistics_hold_no_scan_of_their_own() -> None:
    reference = make_embedding(200, 2)
    familiarity = fit_familiarity(reference)
    assert familiarity is not None
    roots = np.sqrt(reference) / np.linalg.norm(np.sqrt(reference), axis=1, keepdims=True)
    for stored in (familiarity.mean_E[None], familiarity.directions_KE, -familiarity.directions_KE):
        assert np.abs(roots[:, None] - stored[None]).max(axis=2).min() > 1e-3


def test_files_come_back_as_they_went(confidence: Confidence) -> None:
    files = confidence.to_files()
    assert set(files) == {NUMBERS_FILE, ARRAYS_FILE} and files == make_confidence().to_files()
    again = Confidence.from_files(files)
    assert again.to_files() == files
    logits_NC, embedding_NE = make_answers(20)[0], make_embedding(20)
    ours, theirs = (c.judge(logits_NC, embedding_NE) for c in (confidence, again))
    for field in dataclasses.fields(ours):
        np.testing.assert_array_equal(getattr(ours, field.name), getattr(theirs, field.name))
    nothing = Confidence(num_classes=4)
    assert set(nothing.to_files()) == {NUMBERS_FILE}
    assert Confidence.from_files(nothing.to_files()).to_files() == nothing.to_files()


def test_the_quantized_model_has_a_threshold_of_its_own_or_none(confidence: Confidence) -> None:
    assert confidence.strange_above is not None and confidence.strange_above_int8 is not None
    rounded, logits_NC = np.round(make_embedding(400, 5) * 20) / 20, make_answers(400)[0]
    assert confidence.judge(logits_NC, rounded).strange_N.mean() > 0.1
    assert confidence.for_int8().judge(logits_NC, rounded).strange_N.mean() < 0.06
    unmeasured = dataclasses.replace(confidence, strange_above_int8=None).for_int8()
    assert unmeasured.calibrated and unmeasured.judge(logits_NC, rounded).strangeness_N is None


def _numbers(**changes: object) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        files[NUMBERS_FILE] = json.dumps(json.loads(files[NUMBERS_FILE]) | changes).encode()

    return change


def _arrays(compression: int = zipfile.ZIP_STORED, **changes: np.ndarray) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        with np.load(io.BytesIO(files[ARRAYS_FILE])) as stored:
            arrays = dict(stored) | changes
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", compression) as archive:
            for name, values in arrays.items():
                member = io.BytesIO()
                np.save(member, values)
                archive.writestr(f"{name}.npy", member.getvalue())
        files[ARRAYS_FILE] = buffer.getvalue()

    return change


def _huge_shape(files: dict[str, bytes]) -> None:
    files[ARRAYS_FILE] = files[ARRAYS_FILE].replace(b"'shape': (32,), ", b"'shape': (9**9), ").replace(b"(1,)", b"(9,)")


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda files: files.pop(NUMBERS_FILE), "expected with or without"),
        (lambda files: files.update({"more.npz": b""}), "more.npz"),
        (lambda files: files.pop(ARRAYS_FILE), "go together"),
        (lambda files: files.update({NUMBERS_FILE: b"{"}), "confidence.json"),
        (lambda files: files.update({NUMBERS_FILE: b"[" * 100_000}), "confidence.json"),
        (lambda files: files.update({NUMBERS_FILE: b" " * (1 << 21)}), "at most"),
        (lambda files: files.update({ARRAYS_FILE: bytes(5 << 20)}), "at most"),
        (lambda files: files.update({ARRAYS_FILE: b"junk"}), "not the file of statistics"),
        (lambda files: files.update({ARRAYS_FILE: files[ARRAYS_FILE][:-40]}), "not the file of statistics"),
        (_numbers(format="gliofed-confidence/9"), "gliofed-confidence/1"),
        (_numbers(extra=1), "extra"),
        (_numbers(temperature=0.0), "temperature is 0.0"),
        (_numbers(temperature=True), "temperature is True"),
        (_numbers(temperature="1"), "temperature is '1'"),
        (_numbers(temperature=float("nan")), "NaN is not a number"),
        (_numbers(temperature=None), "no temperature"),
        (_numbers(set_margin=-1.0), "set_margin is -1.0"),
        (_numbers(coverage=None), "go together"),
        (_numbers(num_classes=0), "num_classes is 0"),
        (_numbers(quality=[]), "format"),
        (_arrays(usual=np.array([np.nan], np.float32)), "finite"),
        (_arrays(usual=np.array([0.0], np.float32)), "expected"),
        (_arrays(usual=np.array([1.0])), "does not fit"),
        (_arrays(mean_E=np.zeros(31, np.float32)), "expected"),
        (_arrays(directions_KE=np.ones((8, 32), np.float32)), "orthonormal"),
        (_arrays(more=np.zeros(1, np.float32)), "more"),
        (_arrays(usual=np.array([{}], object)), "not the file of statistics"),
        (_arrays(zipfile.ZIP_DEFLATED), "compressed"),
        (_huge_shape, "not the file of statistics"),
    ],
)
def test_tampered_files_are_refused(
    confidence: Confidence, tamper: Callable[[dict[str, bytes]], object], message: str
) -> None:
    files = confidence.to_files()
    tamper(files)
    with pytest.raises(BundleError, match=message):
        Confidence.from_files(files)


def test_answers_of_another_model_are_refused(confidence: Confidence) -> None:
    for logits_NC, embedding_NE in (
        (np.zeros((2, 3)), make_embedding(2)),
        (np.zeros((2, 4)), make_embedding(3)),
        (np.zeros((2, 4)), np.zeros((2, 9))),
    ):
        with pytest.raises(ValueError, match="expected"):
            confidence.judge(logits_NC, embedding_NE)
