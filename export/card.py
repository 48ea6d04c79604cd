"""What a bundle says about its model: MODEL_CARD.md to people, configs/metadata.json to machines.

Layout after Mitchell et al. 2019, "Model Cards for Model Reporting". The card repeats figures and never makes
one up: a view that was not measured is named as not measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from kernels.spec import PreprocessSpec

DataKind = Literal["phantom", "mri"]

INPUT_NAME = "images"
OUTPUT_NAMES = ("logits", "class_maps")
"""Names of the graph's input and outputs."""

INTENDED_USE = "Research on federated learning: sorting single 2D brain MRI slices into the classes listed."

LIMITS: tuple[str, ...] = (
    "Not a medical device. No authority has cleared it, and no clinical decision may rest on it.",
    "It looks at one 2D slice without sequence, orientation, history or the rest of the volume.",
    "It answers with one of its classes for any image at all, including images that are not brain MRI.",
    "Scanners, sequences, ages and populations outside the training sites were not studied.",
    "Probabilities are a softmax of the scores and are not calibrated.",
    "Class maps show what raised a score. They do not outline a lesion.",
)

LICENCE = (
    "Code: Apache-2.0. The weights carry the terms of the images and pretrained weights they were trained "
    "from; read provenance.json before passing them on."
)

VIEWS: tuple[tuple[str, str], ...] = (
    ("as_published", "as published (all test images)"),
    ("deduplicated", "deduplicated (no near-duplicate in training)"),
)
"""Keys of metrics.json that hold figures of one view of the test set, and their headings."""

_DATA_NOTES: dict[DataKind, str] = {
    "phantom": (
        "> # ⚠ TRAINED ON PHANTOMS, NOT ON PATIENTS\n>\n"
        "> Every training and test image was drawn by a program. The figures below say that the software "
        "works. They say **nothing** about patients, and no decision may rest on what this model says of one."
    ),
    "mri": "Trained on MRI slices; provenance.json names them.",
}


def render_card(
    *,
    name: str,
    model_version: str,
    labels: Sequence[str],
    preprocess: PreprocessSpec,
    metrics: Mapping[str, Any],
    provenance: Mapping[str, Any],
    data_kind: DataKind,
    model_sha256: str,
    model_size_bytes: int,
) -> str:
    """Return the card as Markdown; the same arguments give the same text.

    metrics: see `VIEWS`; a view holds figures, nested as one likes. Tables (confusion matrices) and other
    keys stay in metrics.json alone.
    """
    sections = [
        f"# {name} {model_version}",
        _DATA_NOTES[data_kind],
        "## What it is",
        "VGG19 convolutions, global pooling and one linear layer, trained across sites that kept "
        f"their images. `model.onnx` ({model_size_bytes / 1e6:.1f} MB, SHA-256 `{model_sha256}`) takes "
        "prepared slices and returns class scores and one class map for each class.",
        _bullets(f"label {index}: `{label}`" for index, label in enumerate(labels)),
        f"Input: {preprocess.size}×{preprocess.size}, prepared as `preprocess.json` says "
        f"(semantics `{preprocess.semantics}`, digest `{preprocess.digest()}`).",
        "## Figures",
        _figures(metrics),
        "## Intended use and limits",
        INTENDED_USE,
        _bullets(LIMITS),
        "## Where it comes from",
        _table(("fact", "value"), list(_scalars(provenance).items())) if provenance else "Nothing was recorded.",
        "## Licence",
        LICENCE,
    ]
    return "\n\n".join(sections) + "\n"


def describe(
    name: str, model_version: str, labels: Sequence[str], preprocess: PreprocessSpec, data_kind: DataKind
) -> dict[str, Any]:
    """Return configs/metadata.json as a dict; the field names inside network_data_format are MONAI's."""
    size, norm = preprocess.size, preprocess.normalization
    bounds = [(level * norm.scale - m) / s for level in (0, 255) for m, s in zip(norm.mean, norm.std, strict=True)]
    common = {"dtype": "float32", "is_patch_data": False}
    images = common | {
        "type": "image",
        "format": "magnitude",
        "modality": "MR",
        "num_channels": 3,
        "spatial_shape": [size, size],
        "value_range": [min(bounds), max(bounds)],
        "channel_def": dict(zip("012", norm.channel_order, strict=True)),
    }
    scores = common | {
        "num_channels": len(labels),
        "channel_def": {str(i): label for i, label in enumerate(labels)},
    }
    logits = scores | {"type": "probabilities", "format": "logits", "spatial_shape": [], "value_range": []}
    class_maps = scores | {
        "type": "image",
        "format": "heatmap",
        "spatial_shape": ["*", "*"],
        "value_range": [],
    }
    return {
        "schema": "gliofed-bundle-metadata/1",
        "name": name,
        "version": model_version,
        "task": "classification of single brain MRI slices",
        "data_kind": data_kind,
        "intended_use": INTENDED_USE,
        "limits": list(LIMITS),
        "network_data_format": {
            "inputs": {INPUT_NAME: images},
            "outputs": {OUTPUT_NAMES[0]: logits, OUTPUT_NAMES[1]: class_maps},
        },
    }


def _figures(metrics: Mapping[str, Any]) -> str:
    """Return one table with a column for each view, and a sentence for each view that was not measured."""
    measured = {key: _scalars(metrics[key]) for key, _ in VIEWS if isinstance(metrics.get(key), Mapping)}
    notes = [f"**Not measured: {heading}.**" for key, heading in VIEWS if key not in measured]
    if not measured:
        return "\n\n".join(notes)
    names = list(dict.fromkeys(name for figures in measured.values() for name in figures))
    rows = [(name, *(figures.get(name, "–") for figures in measured.values())) for name in names]
    headings = [heading for key, heading in VIEWS if key in measured]
    return "\n\n".join([_table(("figure", *headings), rows), *notes])


def _scalars(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the tree's leaves by dotted name, in the order of their names, as text; tables are left out."""
    leaves: dict[str, str] = {}
    for key, value in sorted(tree.items()):
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            leaves |= _scalars(value, f"{name}.")
        elif isinstance(value, list | tuple) and all(isinstance(item, Mapping) and "name" in item for item in value):
            named = {item["name"]: {k: v for k, v in item.items() if k != "name"} for item in value}
            leaves |= _scalars(named, f"{name}.")
        elif not isinstance(value, list | tuple):
            leaves[name] = _text(value)
        elif not any(isinstance(item, Mapping | list | tuple) for item in value):
            leaves[name] = ", ".join(map(_text, value)) or "none"
    return leaves


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if math.isfinite(value) and 1e-3 <= abs(value) < 1e4 else f"{value:g}"
    return "–" if value is None else str(value)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
