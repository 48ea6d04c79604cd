"""Which files a bundle has, and which of them go together."""

from __future__ import annotations

import re
from collections.abc import Collection

from export.errors import BundleError
from export.signing import SIGNATURE_FILE

FORMAT_VERSION = 2

PREPROCESS_KEY = "gliofed.preprocess"
LABELS_KEY = "gliofed.labels"
"""Keys of the ONNX file's metadata_props. They let a reader of the bare file know its input, and let the
predictor refuse a model beside another model's preprocess.json."""

MANIFEST, SIGNATURE = "MANIFEST.json", SIGNATURE_FILE
MODEL, INT8_MODEL = "model.onnx", "model.int8.onnx"
PREPROCESS, METADATA = "preprocess.json", "configs/metadata.json"
METRICS, PROVENANCE, CARD = "metrics.json", "provenance.json", "MODEL_CARD.md"
CONFIDENCE, CONFIDENCE_ARRAYS = "confidence.json", "confidence.npz"
GRAYS, LOGITS, INT8_LOGITS = "golden/grays.npy", "golden/logits.npy", "golden/int8_logits.npy"
ENGINE_REPORT = "engines/report.json"
ENGINE = re.compile(r"engines/[a-z0-9_]{1,32}-[a-z0-9]{1,16}\.engine")
"""engines/<architecture>-<precision>.engine: engines/sm_90-fp16.engine."""

_REQUIRED = frozenset({MODEL, PREPROCESS, METADATA, METRICS, PROVENANCE, CARD})
_OPTIONAL = frozenset({INT8_MODEL, CONFIDENCE, CONFIDENCE_ARRAYS, GRAYS, LOGITS, INT8_LOGITS, ENGINE_REPORT})


def engine_file(name: str) -> str:
    """Return the file of an engine, by <architecture>-<precision>. Raises BundleError for another form of name."""
    file = f"engines/{name}.engine"
    if not ENGINE.fullmatch(file):
        raise BundleError(file, "is no name of an engine; expected <architecture>-<precision>, such as sm_90-fp16")
    return file


def check_names(names: Collection[str]) -> None:
    """Raise BundleError unless these are the files of a bundle, MANIFEST.json and model.sig left out.

    An exact list of names leaves no room for "..", "/" or odd characters.
    """
    found = set(names)
    for name in sorted(found - _REQUIRED - _OPTIONAL):
        if not ENGINE.fullmatch(name):
            raise BundleError(MANIFEST, f"names {name!r}, which is no file of a version {FORMAT_VERSION} bundle")
    if missing := _REQUIRED - found:
        raise BundleError(MANIFEST, f"does not name {sorted(missing)}; a bundle has these files")
    if len(found & {GRAYS, LOGITS}) == 1:
        raise BundleError(MANIFEST, f"names one of {GRAYS} and {LOGITS}; expected both or none")
    if (INT8_LOGITS in found) != (found >= {INT8_MODEL, GRAYS}):
        raise BundleError(MANIFEST, f"expected {INT8_LOGITS} where there are golden images and {INT8_MODEL}, only then")
    if CONFIDENCE_ARRAYS in found and CONFIDENCE not in found:
        raise BundleError(MANIFEST, f"names {CONFIDENCE_ARRAYS} without {CONFIDENCE}, which says what it holds")
    if (ENGINE_REPORT in found) != any(ENGINE.fullmatch(name) for name in found):
        raise BundleError(MANIFEST, f"expected {ENGINE_REPORT} where there are engines, and only there")
