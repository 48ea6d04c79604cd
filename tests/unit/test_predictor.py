from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from export.answer import Answer
from export.bundle import Bundle, load_bundle, write_bundle
from export.calibration import softmax
from export.confidence import Confidence
from export.errors import PredictorError, UntrustedBundle
from export.familiarity import fit_familiarity
from export.heatmap import encode_png, grad_cam, overlay_heatmap
from export.onnx import build_onnx
from export.predictor import (
    GOLDEN_TOLERANCE,
    INT8_GOLDEN_TOLERANCE,
    Predictor,
    make_golden,
    open_session,
)
from export.signing import SigningKey, Trust
from kernels.decode import UnreadableImage
from kernels.ops import crop, preprocess
from kernels.spec import Box, Normalization, PreprocessSpec

LABELS = ("glioma", "meningioma", "notumor", "pituitary")
SPEC = PreprocessSpec(
    size=50,
    normalization=Normalization(
        channel_order="rgb", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    ),
)


def make_network() -> tuple[nn.Sequential, nn.Linear]:
    """Return a small network with two pools; class maps of 50-pixel images are 25 cells wide."""
    torch.manual_seed(3)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for block, (channels, out) in enumerate([(3, 8), (8, 12)], 1):
        layers[f"block{block}_conv1"] = nn.Conv2d(channels, out, 3, padding=1)
        layers[f"block{block}_relu1"] = nn.ReLU()
        layers[f"block{block}_pool"] = nn.MaxPool2d(2)
    return nn.Sequential(layers), nn.Linear(12, len(LABELS))


def make_head(height: int = 120, width: int = 100, seed: int = 0) -> np.ndarray:
    """Return a noisy bright ellipse on black: a slice that preprocessing finds a head in."""
    gray = np.zeros((height, width), np.uint8)
    centre, axes = (width // 2, height // 2), (width // 3, height // 3)
    cv2.ellipse(gray, centre, axes, 0, 0, 360, 160, -1)
    noise = np.random.default_rng(seed).integers(-40, 40, gray.shape)
    return np.where(gray > 0, gray + noise, 0).astype(np.uint8)


Load = Callable[..., Bundle]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory, signing_key: SigningKey, trust: Trust) -> Load:
    """Return a loaded bundle of a model's file, with other arguments of write_bundle."""

    def write_and_load(onnx_bytes: bytes, **more: Any) -> Bundle:
        path = write_bundle(
            tmp_path_factory.mktemp("bundles") / "bundle",
            onnx_bytes=onnx_bytes,
            preprocess=SPEC,
            labels=LABELS,
            metrics={},
            provenance={},
            data_kind="phantom",
            key=signing_key,
            **more,
        )
        return load_bundle(path, trust)

    return write_and_load


@pytest.fixture(scope="module")
def bundle(load: Load) -> Bundle:
    return load(build_onnx(*make_network(), preprocess=SPEC, labels=LABELS))


@pytest.fixture(scope="module")
def predictor(bundle: Bundle) -> Predictor:
    return Predictor(bundle)


def test_answers_are_those_of_torch_on_the_bundles_own_preprocessing(predictor: Predictor) -> None:
    grays = [make_head(), make_head(200, 90, seed=1), make_head(64, 64, seed=2)]
    answers = predictor.predict(grays)
    features, head = make_network()
    images = torch.from_numpy(preprocess(grays, SPEC)[0])
    with torch.no_grad():
        activations = features[:-1](images)
        logits = head(features(images).mean(dim=(2, 3)))
    class_maps = torch.einsum("ck,nkhw->nchw", head.weight, activations).detach().numpy()
    assert answers.class_maps_NChw.shape == (3, 4, 25, 25)
    assert np.abs(answers.logits_NC - logits.numpy()).max() < 1e-5
    assert np.abs(answers.class_maps_NChw - class_maps).max() < 1e-5
    assert np.abs(answers.probabilities_NC - torch.softmax(logits, 1).numpy()).max() < 1e-6
    assert answers.found_N.tolist() == [True, True, True]


def test_an_image_without_a_head_is_answered_and_marked(predictor: Predictor) -> None:
    answers = predictor.predict([make_head(), np.zeros((80, 80), np.uint8)])
    assert answers.found_N.tolist() == [True, False]
    assert np.isfinite(answers.logits_NC).all()


def test_batches_do_not_change_answers_and_repeats_are_bit_equal(predictor: Predictor) -> None:
    grays = [make_head(seed=seed) for seed in range(5)]
    whole, again, split = (predictor.predict(grays, batch_size=size) for size in (5, 5, 2))
    assert np.array_equal(whole.logits_NC, again.logits_NC)
    assert np.array_equal(whole.class_maps_NChw, again.class_maps_NChw)
    assert np.allclose(whole.logits_NC, split.logits_NC, atol=1e-5)


def test_no_images_give_empty_answers_of_the_right_shape(predictor: Predictor) -> None:
    answers = predictor.predict([])
    assert answers.logits_NC.shape == answers.probabilities_NC.shape == (0, 4)
    assert answers.class_maps_NChw.shape == (0, 4, 25, 25)
    assert answers.found_N.shape == (0,)


def test_bytes_and_files_answer_as_their_pixels_do(predictor: Predictor, tmp_path: Path) -> None:
    gray = make_head()
    png = encode_png(gray)
    (tmp_path / "slice.png").write_bytes(png)
    expected = predictor.predict([gray]).logits_NC
    assert np.array_equal(predictor.predict_bytes({"slice.png": png}).logits_NC, expected)
    assert np.array_equal(predictor.predict_files([tmp_path / "slice.png"]).logits_NC, expected)
    with pytest.raises(UnreadableImage, match=r"report\.pdf"):
        predictor.predict_bytes({"slice.png": png, "report.pdf": b"%PDF-1.4 not an image"})


def test_a_provider_that_is_not_working_here_is_an_error_and_never_the_cpu_in_silence(bundle: Bundle) -> None:
    with pytest.raises(PredictorError, match="asked for"):
        Predictor(bundle, providers=("NoSuchExecutionProvider",))
    with pytest.raises(PredictorError, match="asked for"):
        Predictor(bundle, providers=())
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, so the CUDA provider does start")
    for providers in (("CUDAExecutionProvider",), ("CUDAExecutionProvider", "CPUExecutionProvider")):
        with pytest.raises(PredictorError, match="CUDAExecutionProvider"):
            Predictor(bundle, providers=providers)


def test_settings_out_of_range_are_refused(bundle: Bundle, predictor: Predictor) -> None:
    with pytest.raises(PredictorError, match="num_threads is 0"):
        Predictor(bundle, num_threads=0)
    with pytest.raises(PredictorError, match="batch_size is 0"):
        predictor.predict([], batch_size=0)


def test_another_models_preprocessing_or_labels_are_refused(bundle: Bundle) -> None:
    shifted = dataclasses.replace(SPEC, normalization=dataclasses.replace(SPEC.normalization, mean=(0.0, 0.0, 0.0)))
    for changes in ({"preprocess": shifted}, {"labels": LABELS[::-1]}):
        with pytest.raises(PredictorError, match="belong to different models"):
            Predictor(dataclasses.replace(bundle, **changes))
    for changes in ({"preprocess": dataclasses.replace(SPEC, size=64)}, {"labels": LABELS[:3]}):
        with pytest.raises(PredictorError, match="Export the bundle again"):
            Predictor(dataclasses.replace(bundle, **changes))


def test_a_file_that_is_no_model_or_keeps_weights_elsewhere_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(PredictorError, match="cannot load the model"):
        open_session(b"junk")
    model = onnx.load_model_from_string(bundle.model_onnx)
    weight = model.graph.initializer[0]
    (tmp_path / "weights.bin").write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=str(tmp_path / "weights.bin"))
    with pytest.raises(PredictorError, match="cannot load the model"):
        open_session(model.SerializeToString())


def _damaged(bundle: Bundle, value: float) -> bytes:
    model = onnx.load_model_from_string(bundle.model_onnx)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "head.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(4, value, np.float32), "head.bias"))
    return model.SerializeToString()


def test_scores_that_are_not_finite_are_never_handed_out(bundle: Bundle, load: Load) -> None:
    with pytest.raises(PredictorError, match="not finite"):
        Predictor(load(_damaged(bundle, float("nan")))).predict([make_head()])


def test_self_check_passes_here_and_fails_for_another_model(bundle: Bundle, predictor: Predictor, load: Load) -> None:
    assert predictor.self_check() is None
    grays = np.stack([make_head(seed=seed) for seed in range(2)])
    golden = make_golden(bundle.model_onnx, grays, SPEC)
    checked = Predictor(load(bundle.model_onnx, golden=golden)).self_check()
    assert checked is not None and checked < GOLDEN_TOLERANCE
    with pytest.raises(PredictorError, match=r"in float32 .* Do not serve"):
        Predictor(load(_damaged(bundle, 1.0), golden=golden)).self_check()


def test_each_precision_answers_with_its_own_model_and_is_checked_against_its_own_scores(
    bundle: Bundle, load: Load
) -> None:
    twin = _damaged(bundle, 1.0)
    golden = make_golden(bundle.model_onnx, np.stack([make_head()]), SPEC, int8_onnx=twin)
    both = load(bundle.model_onnx, int8_onnx=twin, golden=golden)
    exact, quantized = Predictor(both), Predictor(both, precision="int8")
    for predictor, recorded in ((exact, golden.logits_NC), (quantized, golden.int8_logits_NC)):
        assert recorded is not None
        assert np.abs(predictor.predict([make_head()]).logits_NC - recorded).max() < 1e-5
        assert predictor.self_check() is not None
    wrong = dataclasses.replace(golden, int8_logits_NC=golden.logits_NC)
    off = Predictor(load(bundle.model_onnx, int8_onnx=twin, golden=wrong), precision="int8")
    with pytest.raises(PredictorError, match=rf"in int8 .*allowed {INT8_GOLDEN_TOLERANCE:g}"):
        off.self_check()
    with pytest.raises(PredictorError, match=r"has no model\.int8\.onnx"):
        Predictor(bundle, precision="int8")


def test_a_model_altered_after_the_bundle_was_loaded_is_not_run(bundle: Bundle, load: Load) -> None:
    loaded = load(bundle.model_onnx)
    (loaded.path / "model.onnx").write_bytes(_damaged(bundle, 1.0)[: loaded.entries["model.onnx"].size_bytes])
    with pytest.raises(UntrustedBundle, match=r"^model.onnx"):
        Predictor(loaded)


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(-(2.0**120), 2.0**120, width=32)))
def test_softmax_is_a_distribution_for_any_finite_scores(logits: np.ndarray) -> None:
    probabilities = softmax(logits)
    assert probabilities.dtype == np.float32
    assert np.isfinite(probabilities).all() and (probabilities >= 0).all()
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    rows = np.arange(len(logits))
    assert (probabilities[rows, logits.argmax(axis=1)] == probabilities.max(axis=1)).all()


def test_grad_cam_spans_zero_to_one_and_is_zero_where_nothing_speaks_for_the_label() -> None:
    maps = np.array([[[-2.0, 4.0], [1.0, 0.0]], [[-1.0, -1.0], [-3.0, 0.0]]], np.float32)
    assert grad_cam(maps, 0).tolist() == [[0.0, 1.0], [0.25, 0.0]]
    assert grad_cam(maps, 1).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert maps[0, 0, 0] == -2.0
    for label in (-1, 2):
        with pytest.raises(PredictorError, match=f"label is {label}"):
            grad_cam(maps, label)


def _coloured(picture: np.ndarray) -> np.ndarray:
    return np.ptp(picture.astype(int), axis=2) > 0


def test_a_zero_map_changes_nothing_and_weak_areas_stay_grey() -> None:
    gray = make_head()
    unchanged = np.repeat(gray[:, :, None], 3, axis=2)
    assert np.array_equal(overlay_heatmap(gray, np.zeros((3, 3), np.float32), None, image_size=48), unchanged)
    faint = overlay_heatmap(gray, np.full((3, 3), 0.02, np.float32), None, image_size=48)
    assert np.abs(faint.astype(int) - unchanged).max() <= 4


def test_the_map_lies_on_the_crop_and_nothing_outside_is_touched() -> None:
    gray = make_head(200, 150)
    box = crop(gray).box
    assert box is not None
    picture = overlay_heatmap(gray, np.ones((3, 3), np.float32), box, image_size=48)
    assert picture.shape == (200, 150, 3) and picture.dtype == np.uint8
    inside = np.zeros(gray.shape, bool)
    inside[box.top : box.bottom, box.left : box.right] = True
    assert np.array_equal(_coloured(picture), inside)
    assert np.array_equal(picture[~inside], np.repeat(gray[~inside][:, None], 3, axis=1))


@pytest.mark.parametrize(("cell", "image_size"), [((0, 0), 48), ((1, 2), 48), ((2, 1), 50), ((2, 2), 63)])
def test_a_hot_cell_is_hottest_at_its_own_place_in_the_original(cell: tuple[int, int], image_size: int) -> None:
    """The centre of cell i is pixel 16 i + 8 of the network's image, also where cells cover 48 of 50."""
    cam = np.zeros((3, 3), np.float32)
    cam[cell] = 1.0
    box = Box(40, 30, 340, 230)
    picture = overlay_heatmap(np.zeros((260, 400), np.uint8), cam, box, image_size=image_size)
    strength = picture.sum(axis=2, dtype=int)
    rows, columns = np.nonzero(strength >= strength.max() * 0.98)
    expected_row = 30 + (16 * cell[0] + 8) / image_size * 200
    expected_column = 40 + (16 * cell[1] + 8) / image_size * 300
    if cell[0] == 1:  # a border cell goes on to the border, so only inner ones have a centre
        assert abs(rows.mean() + 0.5 - expected_row) < 3
    if cell[1] == 1:
        assert abs(columns.mean() + 0.5 - expected_column) < 3
    assert rows.min() - 1 <= expected_row <= rows.max() + 1
    assert columns.min() - 1 <= expected_column <= columns.max() + 1


@pytest.mark.parametrize(
    "box", [Box(0, 0, 101, 10), Box(-1, 0, 10, 10), Box(5, 5, 5, 9), Box(0, 9, 10, 3), Box(0, 0, 100, 121)]
)
def test_a_box_outside_the_image_is_refused(box: Box) -> None:
    with pytest.raises(PredictorError, match="inside the 100x120 image"):
        overlay_heatmap(make_head(), np.ones((3, 3), np.float32), box, image_size=48)


def test_a_map_that_cannot_come_from_that_image_size_is_refused() -> None:
    with pytest.raises(PredictorError, match="5 cells wide cannot come from images of 48"):
        overlay_heatmap(make_head(), np.ones((5, 5), np.float32), None, image_size=48)


def test_png_bytes_are_lossless_and_repeatable() -> None:
    picture = overlay_heatmap(make_head(), np.eye(3, dtype=np.float32), None, image_size=48)
    png = encode_png(picture)
    assert png == encode_png(picture)
    assert np.array_equal(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR), picture)


def test_the_file_alone_tells_how_to_feed_it(bundle: Bundle) -> None:
    properties = open_session(bundle.model_onnx).get_modelmeta().custom_metadata_map
    assert PreprocessSpec.from_json(json.loads(properties["gliofed.preprocess"])) == SPEC
    assert json.loads(properties["gliofed.labels"]) == list(LABELS)


def test_answers_without_confidence_say_that_nobody_checked(predictor: Predictor) -> None:
    (answer,) = predictor.answer([np.zeros((80, 80), np.uint8)])
    assert not answer.calibrated and not answer.abstains and answer.ood_score is None
    assert set(answer.prediction_set) == set(LABELS)
    assert [caution.code for caution in answer.cautions] == ["phantom_model", "no_head_found", "not_calibrated"]
    assert predictor.answer([]) == []


def test_answers_with_confidence_are_calibrated_and_strange_or_unsure_ones_abstain(load: Load, bundle: Bundle) -> None:
    grays = [make_head(seed=seed) for seed in range(60)]
    plain = Predictor(bundle).predict(grays)
    sure = Confidence(
        num_classes=4,
        temperature=2.0,
        coverage=0.95,
        set_margin=0.01,
        max_error=0.05,
        abstain_below=0.0,
        accepted=0.975,
        strange_above=5.0,
        familiarity=fit_familiarity(plain.embedding_NE),
    )

    def answer(confidence: Confidence, *asked: np.ndarray) -> list[Answer]:
        return Predictor(load(bundle.model_onnx, confidence=confidence.to_files())).answer(asked)

    usual, strange = answer(sure, grays[0], np.full((80, 80), 255, np.uint8))
    np.testing.assert_allclose(usual.probabilities_C, softmax(plain.logits_NC[0] / 2), atol=1e-5)
    assert usual.calibrated and not usual.abstains and usual.prediction_set[0] == usual.label
    assert usual.ood_score is not None and usual.ood_score < 5 == usual.ood_threshold
    assert strange.out_of_distribution and strange.abstains
    assert "out_of_distribution" in {caution.code for caution in strange.cautions}
    (asked,) = answer(dataclasses.replace(sure, abstain_below=1.0), grays[0])
    assert asked.abstains and not asked.out_of_distribution
    told = {caution.code: caution.text for caution in asked.cautions}
    assert "100.0% to be wrong in at most 5% of answers" in told["unsure"] and asked.label in told["unsure"]
    assert json.loads(json.dumps(asked.to_json()))["abstains"] is True


def test_confidence_of_another_model_is_refused(load: Load, bundle: Bundle) -> None:
    other = Confidence(
        num_classes=4,
        accepted=0.975,
        strange_above=5.0,
        familiarity=fit_familiarity(np.random.default_rng(0).random((60, 9))),
    )
    for confidence in (other, Confidence(num_classes=3)):
        with pytest.raises(PredictorError, match="different models"):
            Predictor(load(bundle.model_onnx, confidence=confidence.to_files()))
