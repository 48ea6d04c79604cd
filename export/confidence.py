"""How sure an answer is: calibrated probabilities, classes not ruled out, whether to leave the scan to people.

Fitted where the model is exported, on validation scans that no site trained on; read where it is served. The parts are
`calibration` (are probabilities frequencies?) and `familiarity` (is this an image of the kind the model was made for?).
What too few scans cannot tell is None, and said so; nothing is made up.

NumPy alone. Shape legend: N images or scans, C classes, E embedding.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.calibration import margins, softmax, tempered
from export.errors import BundleError
from export.familiarity import Familiarity, from_arrays

NUMBERS_FILE, ARRAYS_FILE = "confidence.json", "confidence.npz"
_FORMAT = "gliofed-confidence/1"
_MAX_NUMBERS_BYTES, _MAX_ARRAYS_BYTES = 1 << 20, 4 << 20


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Judgement:
    """How sure N answers are, in the order of the images.

    probabilities_NC: float32, rows of sum 1. uncertainty_N: entropy of a row as a share of the largest, 0 to 1.
    in_set_NC: classes not ruled out, the most likely one always among them. unsure_N: probability below what the model
    should answer at. strangeness_N: `Familiarity.strangeness`, None without statistics. strange_N: above threshold.
    """

    probabilities_NC: NDArray[np.float32]
    uncertainty_N: NDArray[np.float64]
    in_set_NC: NDArray[np.bool_]
    unsure_N: NDArray[np.bool_]
    strangeness_N: NDArray[np.float64] | None
    strange_N: NDArray[np.bool_]

    @property
    def abstains(self) -> NDArray[np.bool_]:
        """Which images the model should not be asked about."""
        return self.unsure_N | self.strange_N


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Confidence:
    """What was learnt of a model's answers on scans that it was not trained on; each part None where it could not be.

    temperature: logits are divided by it. coverage, set_margin: classes whose score lies at most the margin below the
    best hold the true one for that share of scans. max_error, abstain_below: answers of at least that probability are
    wrong in at most that share of scans; calibrated without them, the model never should be asked. accepted,
    strange_above: that share of validation scans is at most so strange. strange_above_int8: the same for the quantized
    model, whose rounding lies outside every subspace; the rest holds for it too.
    quality: the figures measured when it was fitted (docs/confidence.md).
    """

    num_classes: int
    temperature: float | None = None
    coverage: float | None = None
    set_margin: float | None = None
    max_error: float | None = None
    abstain_below: float | None = None
    accepted: float | None = None
    strange_above: float | None = None
    strange_above_int8: float | None = None
    familiarity: Familiarity | None = None
    quality: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Raise ValueError for a number out of its range, or one without the other it belongs to."""
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not (type(value) in (int, float) and low <= value <= high):
                raise ValueError(f"{name} is {value!r}; expected {low:g} to {high:g}, or null")
        if type(self.num_classes) is not int or not 1 <= self.num_classes <= 1000:
            raise ValueError(f"num_classes is {self.num_classes!r}; expected 1 to 1000")
        for names in _TOGETHER:
            given = [name for name in names if getattr(self, name) is not None]
            if given and len(given) < len(names):
                raise ValueError(f"has {', '.join(given)} but not all of {', '.join(names)}; they go together")
        if self.abstain_below is not None and self.temperature is None:
            raise ValueError("has abstain_below but no temperature, which its probabilities are made with")

    @property
    def calibrated(self) -> bool:
        """Whether probabilities were held against frequencies."""
        return self.temperature is not None

    def judge(self, logits_NC: NDArray[np.floating], embedding_NE: NDArray[np.floating]) -> Judgement:
        """Return how sure the answers are; finite for any finite logits and embeddings.

        Raises ValueError where the arrays are not of this model's number of classes or size of embedding.
        """
        if logits_NC.ndim != 2 or logits_NC.shape[1] != self.num_classes or len(embedding_NE) != len(logits_NC):
            raise ValueError(
                f"logits of shape {logits_NC.shape} and {len(embedding_NE)} embeddings; expected one of each an image "
                f"and {self.num_classes} classes"
            )
        probabilities_NC = softmax(tempered(logits_NC, self.temperature or 1.0))
        strangeness_N = None if self.familiarity is None else self.familiarity.strangeness(embedding_NE)
        none_N = np.zeros(len(logits_NC), np.bool_)
        return Judgement(
            probabilities_NC=probabilities_NC,
            uncertainty_N=_entropy_share(probabilities_NC),
            in_set_NC=margins(logits_NC) <= (np.inf if self.set_margin is None else self.set_margin),
            unsure_N=self._unsure(probabilities_NC.max(axis=1)),
            strangeness_N=strangeness_N,
            strange_N=none_N if strangeness_N is None else strangeness_N > (self.strange_above or np.inf),
        )

    def for_int8(self) -> Confidence:
        """Return what to judge the quantized model's answers by; no strangeness where it was not measured there."""
        if self.strange_above_int8 is None:
            return replace(self, familiarity=None, accepted=None, strange_above=None)
        return replace(self, strange_above=self.strange_above_int8)

    def _unsure(self, probability_N: NDArray[np.float32]) -> NDArray[np.bool_]:
        if self.abstain_below is None:
            return np.full(len(probability_N), self.calibrated)
        return probability_N < np.float32(self.abstain_below)

    def to_files(self) -> dict[str, bytes]:
        """Return the bundle's files by name, arrays only where there are any; equal values give equal bytes."""
        told: dict[str, Any] = {"format": _FORMAT, "num_classes": self.num_classes, "quality": dict(self.quality)}
        told |= {name: getattr(self, name) for name, _, _ in _RANGES}
        files = {NUMBERS_FILE: (json.dumps(told, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()}
        if self.familiarity is not None:
            buffer = io.BytesIO()
            np.savez(buffer, allow_pickle=False, **self.familiarity.arrays())
            files[ARRAYS_FILE] = buffer.getvalue()
        return files

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Confidence:
        """Return what `to_files` wrote.

        Raises BundleError, naming the file, for other files, keys, types, shapes, sizes or values; nothing is repaired.
        """
        if NUMBERS_FILE not in files or not set(files) <= {NUMBERS_FILE, ARRAYS_FILE}:
            raise BundleError(NUMBERS_FILE, f"expected with or without {ARRAYS_FILE}; got {sorted(files)}")
        told = _parse_numbers(files[NUMBERS_FILE])
        arrays = _parse_arrays(files[ARRAYS_FILE]) if ARRAYS_FILE in files else None
        try:
            familiarity = None if arrays is None else from_arrays(arrays)
        except ValueError as error:
            raise BundleError(ARRAYS_FILE, str(error)) from error
        try:
            return cls(familiarity=familiarity, **told)
        except ValueError as error:
            raise BundleError(NUMBERS_FILE, str(error)) from error


_RANGES = (
    ("temperature", 1e-3, 1e3),
    ("coverage", 0.5, 1.0),
    ("set_margin", 0.0, 1e6),
    ("max_error", 0.0, 0.5),
    ("abstain_below", 0.0, 1.0),
    ("accepted", 0.5, 1.0),
    ("strange_above", 1e-6, 1e12),
    ("strange_above_int8", 1e-6, 1e12),
)
_TOGETHER = (
    ("coverage", "set_margin"),
    ("max_error", "abstain_below"),
    ("accepted", "strange_above", "familiarity"),
)


def _parse_numbers(data: bytes) -> dict[str, Any]:
    expected = {"format", "num_classes", "quality", *(name for name, _, _ in _RANGES)}
    try:
        if len(data) > _MAX_NUMBERS_BYTES:
            raise ValueError(f"has {len(data)} bytes; expected at most {_MAX_NUMBERS_BYTES}")
        told = json.loads(data, parse_constant=_refuse_constant)
        if not isinstance(told, dict) or set(told) != expected:
            raise ValueError(
                f"has keys {sorted(told) if isinstance(told, dict) else told!r}; expected {sorted(expected)}"
            )
    except (ValueError, RecursionError) as error:
        raise BundleError(NUMBERS_FILE, str(error)) from error
    if told.pop("format") != _FORMAT or not isinstance(told["quality"], dict):
        raise BundleError(NUMBERS_FILE, f"is not of format {_FORMAT}; use the gliofed that wrote it, or export again")
    return told


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number")


def _parse_arrays(data: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays of a .npz of stored members; none is made before its size was held against the file's."""
    if len(data) > _MAX_ARRAYS_BYTES:
        raise BundleError(ARRAYS_FILE, f"has {len(data)} bytes; expected at most {_MAX_ARRAYS_BYTES}")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if any(m.compress_type != zipfile.ZIP_STORED or m.file_size > len(data) for m in members):
                raise ValueError("is compressed; statistics are stored as they are")
            if len({m.filename for m in members}) != len(members):
                raise ValueError("names an array twice")
            return {m.filename.removesuffix(".npy"): _parse_array(archive.read(m)) for m in members}
    except (ValueError, zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise BundleError(ARRAYS_FILE, f"is not the file of statistics that was written ({error})") from error


def _parse_array(data: bytes) -> NDArray[Any]:
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("is a NumPy file of an unknown version")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype != np.dtype("<f4") or is_fortran or math.prod(shape) * 4 != len(data) - stream.tell():
        raise ValueError(f"{dtype} of shape {shape} does not fit {len(data)} bytes of float32")
    values: NDArray[np.float32] = np.frombuffer(data, np.float32, offset=stream.tell()).reshape(shape)
    return values


def _entropy_share(probabilities_NC: NDArray[np.float32]) -> NDArray[np.float64]:
    wide_NC = probabilities_NC.astype(np.float64)
    entropy_N = -(wide_NC * np.log(np.maximum(wide_NC, np.finfo(np.float64).tiny))).sum(axis=1)
    share_N: NDArray[np.float64] = np.clip(entropy_N / np.log(max(wide_NC.shape[1], 2)), 0.0, 1.0)
    return share_N
