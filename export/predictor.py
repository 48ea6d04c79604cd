"""Predictions and heat maps from a bundle. Needs NumPy, OpenCV, ONNX Runtime and our kernels; no torch.

Preprocessing is `kernels.ops.preprocess` with the bundle's spec and nothing else, so that what a hospital
serves is what the sites trained on.

Shape legend: N batch, C classes, S image side, h w class map, H W original image, K RGB or BGR channels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from export.bundle import LABELS_KEY, PREPROCESS_KEY, Bundle, Golden
from export.card import INPUT_NAME, OUTPUT_NAMES
from export.errors import PredictorError
from kernels.decode import decode_gray
from kernels.ops import preprocess
from kernels.spec import Box, PreprocessSpec

CPU = "CPUExecutionProvider"

GOLDEN_TOLERANCE = 1e-3
"""Largest difference from the golden scores, as a share of the largest one. Measured on VGG19 of half width:
float32 sums in another order 1e-6, one grey level in 1 % of the pixels 3e-4; but one level everywhere 5e-3, a
shift by one pixel 7e-3, swapped colour channels 9e-2."""

_HEAT_ALPHA = 0.65
"""Opacity where the map is strongest: anatomy must stay visible below it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Predictions:
    """Answers for N images, in the order of the images.

    logits_NC, probabilities_NC, class_maps_NChw: float32. found_N: bool, False where no head was found and
    the whole image was used instead of a crop; such an answer deserves a look.
    """

    logits_NC: NDArray[np.float32]
    probabilities_NC: NDArray[np.float32]
    class_maps_NChw: NDArray[np.float32]
    found_N: NDArray[np.bool_]


class Predictor:
    """A bundle's model, ready to answer. Safe to call from several threads; holds no state between calls."""

    def __init__(self, bundle: Bundle, *, num_threads: int = 1, providers: Sequence[str] = (CPU,)) -> None:
        """Load the model and check that it is the bundle's.

        num_threads: CPU threads of one call, both for preprocessing and for the network.
        providers: ONNX Runtime execution providers, best first; all of them must be working here.
        Raises PredictorError if a provider does not start or the model and the bundle disagree.
        """
        self.bundle = bundle
        self._num_threads = num_threads
        self._session = open_session(bundle.model_onnx, num_threads=num_threads, providers=providers)
        _check_model(self._session, bundle)
        maps_shape = self._session.get_outputs()[OUTPUT_NAMES.index("class_maps")].shape
        self._map_side = int(maps_shape[-1])

    def predict(self, grays: Sequence[NDArray[np.uint8]], *, batch_size: int = 16) -> Predictions:
        """Return answers for grey images of any sizes, uint8 [H,W]; an empty sequence gives empty arrays.

        The same images with the same batch_size, threads and machine give the same bits. Raises
        PredictorError for scores that are not finite.
        """
        if batch_size < 1:
            raise PredictorError(f"batch_size is {batch_size}; expected 1 or more")
        num_classes, side = len(self.bundle.labels), self._map_side
        logits_NC = np.empty((len(grays), num_classes), np.float32)
        class_maps_NChw = np.empty((len(grays), num_classes, side, side), np.float32)
        found_N = np.empty(len(grays), np.bool_)
        for start in range(0, len(grays), batch_size):
            rows = slice(start, start + batch_size)
            images_NCHW, found_N[rows] = preprocess(grays[rows], self.bundle.preprocess, num_threads=self._num_threads)
            logits_NC[rows], class_maps_NChw[rows] = self._session.run(list(OUTPUT_NAMES), {INPUT_NAME: images_NCHW})
        _require_finite(logits_NC)
        return Predictions(
            logits_NC=logits_NC,
            probabilities_NC=softmax(logits_NC),
            class_maps_NChw=class_maps_NChw,
            found_N=found_N,
        )

    def predict_bytes(self, files: Mapping[str, bytes], *, batch_size: int = 16) -> Predictions:
        """Return answers for encoded images by name, in the mapping's order; names serve for errors only.

        Raises kernels.decode.UnreadableImage for the first file that is not a readable image; none is
        skipped.
        """
        grays = [decode_gray(data, source=name) for name, data in files.items()]
        return self.predict(grays, batch_size=batch_size)

    def predict_files(self, paths: Sequence[Path], *, batch_size: int = 16) -> Predictions:
        """Return answers for image files, in order.

        Errors as in `predict_bytes`, and OSError for a file that cannot be read. Decodes all files before the
        first prediction: hand over thousands in slices.
        """
        grays = [decode_gray(path.read_bytes(), source=str(path)) for path in paths]
        return self.predict(grays, batch_size=batch_size)

    def self_check(self) -> float | None:
        """Answer the bundle's golden images and compare with the recorded scores.

        Returns the worst difference as a share of the largest recorded score, None if the bundle has no
        golden images. Raises PredictorError past GOLDEN_TOLERANCE: this machine does not compute what the
        exporting machine did, and must not serve.
        """
        golden = self.bundle.golden
        if golden is None:
            return None
        logits_NC = self.predict(list(golden.grays_NHW)).logits_NC
        if logits_NC.shape != golden.logits_NC.shape:
            raise PredictorError(
                f"golden scores have shape {golden.logits_NC.shape}; this model gives {logits_NC.shape}"
            )
        scale = max(float(np.abs(golden.logits_NC).max()), float(np.finfo(np.float32).tiny))
        worst = float(np.abs(logits_NC - golden.logits_NC).max()) / scale
        if worst > GOLDEN_TOLERANCE:
            raise PredictorError(
                f"golden images of {self.bundle.path} are answered {worst:.3g} away from the recorded scores "
                f"(allowed {GOLDEN_TOLERANCE:g} of the largest). Do not serve; reinstall gliofed or fetch "
                f"the bundle again"
            )
        return worst


def open_session(onnx_bytes: bytes, *, num_threads: int = 1, providers: Sequence[str] = (CPU,)) -> ort.InferenceSession:
    """Return a deterministic ONNX Runtime session that runs on the given providers and on no other.

    ONNX Runtime falls back to the CPU with a warning when a provider cannot start; here that is a
    PredictorError. Weights outside the bytes (external data) are refused by ONNX Runtime itself, which has no
    folder to look in.
    """
    if num_threads < 1:
        raise PredictorError(f"num_threads is {num_threads}; expected 1 or more")
    missing = [name for name in providers if name not in ort.get_available_providers()]
    if missing or not providers:
        raise PredictorError(
            f"execution providers {list(providers)} were asked for; this ONNX Runtime has "
            f"{ort.get_available_providers()}. Choose from these, or install the build that has the others"
        )
    try:
        session = ort.InferenceSession(onnx_bytes, _options(num_threads, providers), providers=list(providers))
    except Exception as error:  # ONNX Runtime's own exceptions share no base but Exception
        raise PredictorError(f"ONNX Runtime cannot load the model on {list(providers)}: {error}") from error
    session.disable_fallback()
    if (working := session.get_providers())[: len(providers)] != list(providers):
        raise PredictorError(
            f"execution providers {list(providers)} were asked for, only {working} started. Install what the "
            f"missing one needs (its driver and libraries), or ask for {CPU}"
        )
    return session


def make_golden(onnx_bytes: bytes, grays_NHW: NDArray[np.uint8], spec: PreprocessSpec) -> Golden:
    """Return images with the scores that the model gives them here, for a bundle's self-check.

    grays_NHW: uint8 [N,H,W], phantoms only: they travel with the bundle (see `Golden`).
    """
    images_NCHW, _ = preprocess(list(grays_NHW), spec)
    (logits_NC,) = open_session(onnx_bytes).run([OUTPUT_NAMES[0]], {INPUT_NAME: images_NCHW})
    return Golden(grays_NHW=grays_NHW, logits_NC=logits_NC)


def softmax(logits_NC: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return probabilities along the last axis, float32; finite for any finite logits."""
    shifted = logits_NC.astype(np.float64) - logits_NC.max(axis=-1, keepdims=True, initial=-np.inf)
    powers = np.exp(shifted)
    probabilities: NDArray[np.float32] = (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)
    return probabilities


def grad_cam(class_maps_Chw: NDArray[np.float32], label: int) -> NDArray[np.float32]:
    """Return one image's Grad-CAM for a label, float32 [h,w], divided by its maximum so that it spans 0..1.

    All zeros where nothing speaks for the label. Equals Grad-CAM at the last convolution (see export/onnx.py)
    up to the scale; maps of different images or labels must not be compared by their brightness.
    """
    if not 0 <= label < len(class_maps_Chw):
        raise PredictorError(f"label is {label}; the class maps are for 0..{len(class_maps_Chw) - 1}")
    cam_hw: NDArray[np.float32] = np.maximum(class_maps_Chw[label], np.float32(0))
    peak = cam_hw.max()
    if peak > 0:
        cam_hw /= peak
    return cam_hw


def overlay_heatmap(
    gray_HW: NDArray[np.uint8],
    cam_hw: NDArray[np.float32],
    box: Box | None,
    *,
    image_size: int,
) -> NDArray[np.uint8]:
    """Return the original image with the map laid over the region the network saw, uint8 BGR [H,W,3].

    cam_hw: 0..1, of `grad_cam`. box: left, top, right, bottom in the original (right and bottom excluded), as
    `kernels.ops.crop` gives it; None if the whole image was used. image_size: the spec's side S, which
    tells where the map's cells lie. Opacity follows the strength (at most 65 %), so anatomy shows through and
    weak areas stay grey; outside the box the image is untouched. Smooth between cells: detail finer than a
    cell is not evidence.
    """
    height, width = gray_HW.shape
    left, top, right, bottom = box if box is not None else (0, 0, width, height)
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise PredictorError(f"box is {box}; expected left, top, right, bottom inside the {width}x{height} image")
    heat_hw = _spread(cam_hw, bottom - top, right - left, image_size)
    levels_hw = np.rint(heat_hw * 255).astype(np.uint8)
    colours_hwK = cv2.applyColorMap(levels_hw, cv2.COLORMAP_INFERNO).astype(np.float32)
    picture_HWK: NDArray[np.uint8] = np.repeat(gray_HW[:, :, None], 3, axis=2)
    region_hwK = picture_HWK[top:bottom, left:right]
    alpha_hw1 = (_HEAT_ALPHA * heat_hw)[:, :, None]
    region_hwK[:] = np.rint(region_hwK * (1 - alpha_hw1) + colours_hwK * alpha_hw1).astype(np.uint8)
    return picture_HWK


def encode_png(image_HWK: NDArray[np.uint8]) -> bytes:
    """Return a PNG file of a BGR or grey uint8 image; the same image gives the same bytes."""
    written, data = cv2.imencode(".png", image_HWK, [cv2.IMWRITE_PNG_COMPRESSION, 6])
    if not written:
        raise PredictorError(f"OpenCV cannot write {image_HWK.dtype} of shape {image_HWK.shape} as PNG")
    return bytes(data)


def _spread(cam_hw: NDArray[np.float32], height: int, width: int, image_size: int) -> NDArray[np.float32]:
    """Return the map over a crop of height x width pixels, 0..1, cubic between the centres of its cells.

    Each pooling halves the side and drops an odd last row and column, so the map covers only the first cells
    * 2**pools pixels of the S that the network saw (192 of 200): stretching it over all would shift it. What
    lies beyond the last centres repeats the border cell.
    """
    stride = _stride(image_size, cam_hw.shape[0])
    scale_x, scale_y = image_size / (width * stride), image_size / (height * stride)
    to_cells = np.array([[scale_x, 0, scale_x / 2 - 0.5], [0, scale_y, scale_y / 2 - 0.5]])
    heat_hw = cv2.warpAffine(
        cam_hw,
        to_cells,
        (width, height),
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.clip(heat_hw, 0, 1).astype(np.float32)


def _stride(image_size: int, num_cells: int) -> int:
    """Return how many input pixels apart the centres of neighbouring cells are: 2**pools."""
    for num_pools in range(image_size.bit_length()):
        if image_size >> num_pools == num_cells:
            return 1 << num_pools
    raise PredictorError(f"a map {num_cells} cells wide cannot come from images of {image_size} pixels by halving")


def _options(num_threads: int, providers: Sequence[str]) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    # Failures come as exceptions; the log would repeat them on stderr, with notes on absent GPUs.
    options.log_severity_level = 4
    # Threads that wait must not burn a CPU that they share with preprocessing and the service.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if CPU not in providers:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _check_model(session: ort.InferenceSession, bundle: Bundle) -> None:
    """Raise PredictorError unless the model and the bundle agree on input, labels and preprocessing."""
    shapes = {value.name: value.shape[1:] for value in (*session.get_inputs(), *session.get_outputs())}
    size, num_classes = bundle.preprocess.size, len(bundle.labels)
    if set(shapes) != {INPUT_NAME, *OUTPUT_NAMES}:
        raise PredictorError(
            f"model of {bundle.path} has {sorted(shapes)}; expected {INPUT_NAME}, {', '.join(OUTPUT_NAMES)}"
        )
    if shapes[INPUT_NAME] != [3, size, size] or shapes[OUTPUT_NAMES[0]] != [num_classes]:
        raise PredictorError(
            f"model of {bundle.path} maps {shapes[INPUT_NAME]} to {shapes[OUTPUT_NAMES[0]]} scores; its "
            f"preprocessing gives {[3, size, size]} and it has {num_classes} labels. Export the bundle again"
        )
    properties = session.get_modelmeta().custom_metadata_map
    try:
        spec = PreprocessSpec.from_json(json.loads(properties[PREPROCESS_KEY]))
        labels = tuple(json.loads(properties[LABELS_KEY]))
    except (KeyError, ValueError, TypeError) as error:
        raise PredictorError(
            f"model of {bundle.path} does not say how it was trained ({error}); export it again"
        ) from error
    if spec != bundle.preprocess or labels != bundle.labels:
        raise PredictorError(
            f"model of {bundle.path} was trained with {spec} for {labels}; the bundle says "
            f"{bundle.preprocess} for {bundle.labels}. The files belong to different models: export it again"
        )


def _require_finite(logits_NC: NDArray[np.float32]) -> None:
    bad = np.flatnonzero(~np.isfinite(logits_NC).all(axis=1))
    if len(bad):
        raise PredictorError(
            f"scores of image {bad[0]} ({len(bad)} in all) are not finite; the model is damaged, do not serve"
        )
