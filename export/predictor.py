"""Predictions from a bundle. Needs NumPy, ONNX Runtime and our kernels; no torch.

Preprocessing is `kernels.ops.preprocess` with the bundle's spec and nothing else, so that what a hospital
serves is what the sites trained on.

Shape legend: N batch, C classes, S image side, h w class map, H W original image, K RGB or BGR channels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from export.answer import Answer
from export.bundle import INT8_MODEL, LABELS_KEY, MODEL, PREPROCESS_KEY, Bundle, Golden
from export.calibration import softmax
from export.card import INPUT_NAME, OUTPUT_NAMES
from export.confidence import Confidence
from export.errors import PredictorError
from export.providers import provider_options
from export.telling import tell
from kernels.decode import decode_gray
from kernels.ops import color as color_crops
from kernels.ops import crop_into, denoise, preprocess
from kernels.spec import CROP_SIZE, PreprocessSpec

CPU = "CPUExecutionProvider"

Precision = Literal["float32", "int8"]
"""Which of a bundle's models answers: model.onnx or model.int8.onnx."""

GOLDEN_TOLERANCE = 1e-3
"""Largest difference from the golden scores, as a share of the largest one. Measured on VGG19 of half width:
float32 sums in another order 1e-6, one grey level in 1 % of the pixels 3e-4; but one level everywhere 5e-3, a
shift by one pixel 7e-3, swapped colour channels 9e-2."""

INT8_GOLDEN_TOLERANCE = 1e-1
"""The same for a quantized model, whose roundings turn the last bit of a sum into a whole level. Measured on VGG19 with
a wide head, 24 slices: integer kernels against the same graph computed in floating point 3.2e-2, inputs changed by 1e-6
of themselves 2.9e-2, by 1e-4 3.8e-2; swapped colour channels 5.5e-1. It tells a wrong model or machine; small faults of
preprocessing, which all precisions share, are told by float32."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Predictions:
    """Answers for N images, in the order of the images.

    logits_NC, probabilities_NC, class_maps_NChw, embedding_NE: float32; probabilities are a softmax of the scores.
    found_N: bool, False where no head was found and the whole image was used instead of a crop; such an answer deserves
    a look.
    """

    logits_NC: NDArray[np.float32]
    probabilities_NC: NDArray[np.float32]
    class_maps_NChw: NDArray[np.float32]
    embedding_NE: NDArray[np.float32]
    found_N: NDArray[np.bool_]


class Predictor:
    """A bundle's model, ready to answer. Safe to call from several threads; holds no state between calls."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: Precision = "float32",
        num_threads: int = 1,
        providers: Sequence[str] = (CPU,),
        engine_cache: Path | None = None,
    ) -> None:
        """Load the model and check that it is the bundle's.

        precision: int8 needs a bundle with a quantized twin.
        num_threads: CPU threads of one call, both for preprocessing and for the network.
        providers: ONNX Runtime execution providers, best first (export.providers.resolve_providers); all of them must
        be working here. engine_cache: where TensorRT's provider keeps its engines (export.providers.provider_options).
        Raises PredictorError if a provider does not start or the model and the bundle disagree, UntrustedBundle if
        the model's file was altered since the bundle was loaded.
        """
        if precision == "int8" and not bundle.has_int8:
            raise PredictorError(
                f"bundle {bundle.path} has no {INT8_MODEL}; serve it in float32, or export it with --to onnx,int8"
            )
        self.bundle = bundle
        self.confidence = _confidence_of(bundle, precision)
        self.precision: Precision = precision
        self._num_threads = num_threads
        model = bundle.read(INT8_MODEL if precision == "int8" else MODEL)
        options = provider_options(image_size=bundle.preprocess.size, cache=engine_cache)
        self._session = open_session(model, num_threads=num_threads, providers=providers, options=options)
        _check_model(self._session, bundle)
        shapes = {value.name: value.shape for value in self._session.get_outputs()}
        self._map_side, self._num_embedded = (int(shapes[name][-1]) for name in OUTPUT_NAMES[1:])
        familiarity = self.confidence.familiarity
        if familiarity is not None and len(familiarity.mean_E) != self._num_embedded:
            raise PredictorError(
                f"{bundle.path}: confidence is of embeddings of {len(familiarity.mean_E)} values, the model gives "
                f"{self._num_embedded}; the files belong to different models: export it again"
            )

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
        embedding_NE = np.empty((len(grays), self._num_embedded), np.float32)
        found_N = np.empty(len(grays), np.bool_)
        for start in range(0, len(grays), batch_size):
            rows = slice(start, start + batch_size)
            images_NCHW, found_N[rows] = preprocess(grays[rows], self.bundle.preprocess, num_threads=self._num_threads)
            outputs = self._session.run(list(OUTPUT_NAMES), {INPUT_NAME: images_NCHW})
            logits_NC[rows], class_maps_NChw[rows], embedding_NE[rows] = outputs
        _require_finite("scores", logits_NC)
        return Predictions(
            logits_NC=logits_NC,
            probabilities_NC=softmax(logits_NC),
            class_maps_NChw=class_maps_NChw,
            embedding_NE=embedding_NE,
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

    def answer(self, grays: Sequence[NDArray[np.uint8]]) -> list[Answer]:
        """Return what a person is told about each grey image, uint8 [H,W]; one batch of the network.

        Raises PredictorError for scores that are not finite.
        """
        if not grays:
            return []
        crops_NHW = np.empty((len(grays), CROP_SIZE, CROP_SIZE), np.uint8)
        boxes = crop_into(grays, crops_NHW, num_threads=self._num_threads)
        smooth_NHW = denoise(crops_NHW, num_threads=self._num_threads)
        images_NCHW = color_crops(smooth_NHW, self.bundle.preprocess, num_threads=self._num_threads)
        logits_NC, maps_NChw, embedding_NE = self._session.run(list(OUTPUT_NAMES), {INPUT_NAME: images_NCHW})
        _require_finite("scores", logits_NC)
        _require_finite("embedding", embedding_NE)
        judgement = self.confidence.judge(logits_NC, embedding_NE)
        return [
            tell(
                judgement,
                row,
                confidence=self.confidence,
                labels=self.bundle.labels,
                data_kind=self.bundle.data_kind,
                image_shape=gray_HW.shape,
                box=box,
                class_maps_Chw=maps_NChw[row],
                network_side=self.bundle.preprocess.size,
            )
            for row, (gray_HW, box) in enumerate(zip(grays, boxes, strict=True))
        ]

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """The graph's outputs by name, with their shapes; -1 stands for the batch."""
        return {
            value.name: tuple(side if isinstance(side, int) else -1 for side in value.shape)
            for value in self._session.get_outputs()
        }

    def run(self, images_NCHW: NDArray[np.float32], outputs: Sequence[str]) -> list[NDArray[np.float32]]:
        """Return the named outputs of the graph for images that are prepared already, float32 [N,3,S,S].

        Nothing is checked: values that are not finite give scores that are not.
        """
        tensors: list[NDArray[np.float32]] = self._session.run(list(outputs), {INPUT_NAME: images_NCHW})
        return tensors

    def self_check(self) -> float | None:
        """Answer the bundle's golden images and compare with the recorded scores.

        Returns the worst difference as a share of the largest recorded score, None if the bundle has no
        golden images. Raises PredictorError past the precision's tolerance: this machine does not compute what the
        exporting machine did, and must not serve.
        """
        golden = self.bundle.golden
        if golden is None:
            return None
        is_int8 = self.precision == "int8"
        recorded_NC = golden.int8_logits_NC if is_int8 else golden.logits_NC
        tolerance = INT8_GOLDEN_TOLERANCE if is_int8 else GOLDEN_TOLERANCE
        assert recorded_NC is not None, "a bundle with golden images and a quantized model has its scores"
        logits_NC = self.predict(list(golden.grays_NHW)).logits_NC
        if logits_NC.shape != recorded_NC.shape:
            raise PredictorError(f"golden scores have shape {recorded_NC.shape}; this model gives {logits_NC.shape}")
        scale = max(float(np.abs(recorded_NC).max()), float(np.finfo(np.float32).tiny))
        worst = float(np.abs(logits_NC - recorded_NC).max()) / scale
        if worst > tolerance:
            raise PredictorError(
                f"golden images of {self.bundle.path} are answered in {self.precision} {worst:.3g} away from the "
                f"recorded scores (allowed {tolerance:g} of the largest). Do not serve; reinstall gliofed or fetch "
                f"the bundle again"
            )
        return worst


def open_session(
    onnx_bytes: bytes,
    *,
    num_threads: int = 1,
    providers: Sequence[str] = (CPU,),
    options: Mapping[str, Mapping[str, str]] | None = None,
) -> ort.InferenceSession:
    """Return a deterministic ONNX Runtime session that runs on the given providers and on no other.

    options: by provider (export.providers.provider_options); those of providers that are not asked for are left out.
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
        session = ort.InferenceSession(
            onnx_bytes,
            _options(num_threads, providers),
            providers=list(providers),
            provider_options=[dict((options or {}).get(name, {})) for name in providers],
            enable_fallback=0,  # ONNX Runtime would try again with other providers, and say so on stdout
        )
    except Exception as error:  # ONNX Runtime's own exceptions share no base but Exception
        raise PredictorError(f"ONNX Runtime cannot load the model on {list(providers)}: {error}") from error
    session.disable_fallback()
    if (working := session.get_providers())[: len(providers)] != list(providers):
        raise PredictorError(
            f"execution providers {list(providers)} were asked for, only {working} started. Install what the "
            f"missing one needs (its driver and libraries), or ask for {CPU}"
        )
    return session


def make_golden(
    onnx_bytes: bytes, grays_NHW: NDArray[np.uint8], spec: PreprocessSpec, *, int8_onnx: bytes | None = None
) -> Golden:
    """Return images with the scores that the model, and its quantized twin, give them here: a bundle's self-check.

    grays_NHW: uint8 [N,H,W], phantoms only: they travel with the bundle (see `Golden`).
    """
    images_NCHW, _ = preprocess(list(grays_NHW), spec)

    def scores(model: bytes) -> NDArray[np.float32]:
        (logits_NC,) = open_session(model).run([OUTPUT_NAMES[0]], {INPUT_NAME: images_NCHW})
        return np.asarray(logits_NC, np.float32)

    return Golden(
        grays_NHW=grays_NHW,
        logits_NC=scores(onnx_bytes),
        int8_logits_NC=None if int8_onnx is None else scores(int8_onnx),
    )


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


def _confidence_of(bundle: Bundle, precision: Precision) -> Confidence:
    """Return what the bundle knows of its answers' certainty; nothing where it has no such files."""
    files = bundle.confidence_files
    confidence = Confidence.from_files(files) if files else Confidence(num_classes=len(bundle.labels))
    if confidence.num_classes != len(bundle.labels):
        raise PredictorError(
            f"{bundle.path}: confidence is of {confidence.num_classes} classes, the model has {len(bundle.labels)}; "
            "the files belong to different models: export it again"
        )
    return confidence.for_int8() if precision == "int8" else confidence


def _check_model(session: ort.InferenceSession, bundle: Bundle) -> None:
    """Raise PredictorError unless the model and the bundle agree on input, labels and preprocessing."""
    shapes = {value.name: value.shape[1:] for value in (*session.get_inputs(), *session.get_outputs())}
    size, num_classes = bundle.preprocess.size, len(bundle.labels)
    if not shapes.keys() >= {INPUT_NAME, *OUTPUT_NAMES} or len(session.get_inputs()) != 1:
        raise PredictorError(
            f"model of {bundle.path} has {sorted(shapes)}; expected the one input {INPUT_NAME} and at least "
            f"{', '.join(OUTPUT_NAMES)}"
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


def _require_finite(name: str, values_ND: NDArray[np.float32]) -> None:
    bad = np.flatnonzero(~np.isfinite(values_ND).all(axis=1))
    if len(bad):
        raise PredictorError(
            f"{name} of image {bad[0]} ({len(bad)} in all) are not finite; the model is damaged, do not serve"
        )
