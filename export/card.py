"""What a bundle says about its model: MODEL_CARD.md to people, configs/metadata.json to machines.

Layout after Mitchell et al. 2019, "Model Cards for Model Reporting"; metadata after the MONAI bundle specification,
https://docs.monai.io/en/stable/mb_specification.html, less the versions of software that we do not use. The card
repeats figures and never makes one up: a view that was not measured is named as not measured.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from kernels.spec import PreprocessSpec

DataKind = Literal["phantom", "mri"]

INPUT_NAME = "images"
OUTPUT_NAMES = ("logits", "class_maps", "embedding")
"""Names of the graph's input and outputs."""

INTENDED_USE = "Research on federated learning: sorting single 2D brain MRI slices into the classes listed."

_LIMITS: tuple[str, ...] = (
    "Not a medical device. No authority has cleared it, and no clinical decision may rest on it.",
    "It looks at one 2D slice without sequence, orientation, history or the rest of the volume.",
    "It answers with one of its classes for any image at all, including images that are not brain MRI.",
    "Scanners, sequences, ages and populations outside the training sites were not studied.",
    "Class maps show what raised a score. They do not outline a lesion.",
)
_NOT_CALIBRATED = "Probabilities are a softmax of the scores and are not calibrated."
_CALIBRATED = "Probabilities are calibrated for images like those of validation; elsewhere they may mislead."

LICENCE = (
    "Code: Apache-2.0. The weights carry the terms of the images and pretrained weights they were trained "
    "from; read provenance.json before passing them on."
)

VIEWS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("validation",), "validation"),
    (("test", "as_published"), "test, as published (all images)"),
    (("test", "deduplicated"), "test, deduplicated (no near-duplicate in training)"),
)
"""Where metrics.json holds the figures of one set of images, and their headings."""

SECTIONS: tuple[tuple[str, str, str], ...] = (
    (
        "confidence",
        "How sure it is",
        "Calibration, sets of classes, abstention, and images unlike those it was made for; see confidence.json.",
    ),
    (
        "int8",
        "The quantized twin",
        "The quantized model beside `model.onnx` on the same validation images. Where `accepted` is False it was left "
        "out of this bundle.",
    ),
    (
        "explanations",
        "Class maps, measured",
        "How well the maps find the lesions of phantoms, whose masks are known, beside maps that know nothing.",
    ),
)
"""Key of metrics.json, heading and first sentence of what a card tells where there are figures."""

_DATA_NOTES: dict[DataKind, str] = {
    "phantom": (
        "> # ⚠ TRAINED ON PHANTOMS, NOT ON PATIENTS\n>\n"
        "> Every training and test image was drawn by a program. The figures below say that the software "
        "works. They say **nothing** about patients, and no decision may rest on what this model says of one."
    ),
    "mri": "Trained on MRI slices; provenance.json names them.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What is told of one model.

    outputs: the graph's outputs with the sizes of their axes, a name where an axis is free. models: files of the model,
    quantized twin and engines. metrics, confidence: what metrics.json and confidence.json hold; see VIEWS, SECTIONS.
    """

    name: str
    model_version: str
    labels: tuple[str, ...]
    preprocess: PreprocessSpec
    data_kind: DataKind
    outputs: Mapping[str, tuple[int | str, ...]]
    models: Mapping[str, bytes] = field(repr=False)
    metrics: Mapping[str, Any]
    provenance: Mapping[str, Any]
    confidence: Mapping[str, Any]

    @property
    def limits(self) -> tuple[str, ...]:
        """What the model cannot do, a sentence each."""
        return (*_LIMITS, _CALIBRATED if self.confidence.get("temperature") else _NOT_CALIBRATED)


def render_card(card: Card) -> str:
    """Return the card as Markdown; the same arguments give the same text.

    Tables (confusion matrices) and keys other than VIEWS and SECTIONS stay in metrics.json alone.
    """
    spec = card.preprocess
    sections = [
        f"# {card.name} {card.model_version}",
        _DATA_NOTES[card.data_kind],
        "## What it is",
        "VGG19 convolutions, global pooling and one linear layer, trained across sites that kept their images. It "
        f"takes prepared slices and returns {', '.join(f'`{name}`' for name in card.outputs)}: class scores, and what "
        "the metadata say of the others.",
        _table(("file", "MB", "SHA-256"), [_file_row(name, data) for name, data in card.models.items()]),
        _bullets(f"label {index}: `{label}`" for index, label in enumerate(card.labels)),
        f"Input: {spec.size}×{spec.size}, prepared as `preprocess.json` says "
        f"(semantics `{spec.semantics}`, digest `{spec.digest()}`).",
        "## Figures",
        _figures(card.metrics),
        *_sections(card),
        "## Intended use and limits",
        INTENDED_USE,
        _bullets(card.limits),
        "## Where it comes from",
        _facts("fact", card.provenance) if card.provenance else "Nothing was recorded.",
        "`model.sig` names the key that signed all of this; docs/bundle.md tells how to check it.",
        "## Licence",
        LICENCE,
    ]
    return "\n\n".join(sections) + "\n"


def describe(card: Card) -> dict[str, Any]:
    """Return configs/metadata.json as a dict; the field names are MONAI's but for data_kind, limits and name."""
    return {
        "name": card.name,
        "version": card.model_version,
        "changelog": {card.model_version: "exported from the run that provenance.json names"},
        "task": "classification of single brain MRI slices",
        "description": "A VGG19 whose head was trained by federated learning: class scores for one prepared slice, and "
        "one map for each class that shows where its score comes from.",
        "authors": "whoever signed the bundle; provenance.json names the run",
        "copyright": LICENCE,
        "data_kind": card.data_kind,
        "intended_use": INTENDED_USE,
        "limits": list(card.limits),
        "network_data_format": {
            "inputs": {INPUT_NAME: _describe_input(card.preprocess)},
            "outputs": {name: _describe_output(name, axes, card.labels) for name, axes in card.outputs.items()},
        },
    }


def _describe_input(preprocess: PreprocessSpec) -> dict[str, Any]:
    size, norm = preprocess.size, preprocess.normalization
    bounds = [(level * norm.scale - m) / s for level in (0, 255) for m, s in zip(norm.mean, norm.std, strict=True)]
    return {
        "type": "image",
        "format": "magnitude",
        "modality": "MR",
        "num_channels": 3,
        "spatial_shape": [size, size],
        "dtype": "float32",
        "value_range": [min(bounds), max(bounds)],
        "is_patch_data": False,
        "channel_def": dict(zip("012", norm.channel_order, strict=True)),
    }


def _describe_output(name: str, axes: Sequence[int | str], labels: Sequence[str]) -> dict[str, Any]:
    """Return MONAI's specifier of an output [N, channels, ...]; only the two that we know speak of classes."""
    kinds = {
        "logits": ("probabilities", "logits"),
        "class_maps": ("image", "heatmap"),
        "embedding": ("tuples", "latent"),
    }
    kind, form = kinds.get(name, ("tuples", "raw"))
    classes = {str(index): label for index, label in enumerate(labels)}
    return {
        "type": kind,
        "format": form,
        "modality": "n/a",
        "num_channels": axes[1] if len(axes) > 1 else 1,
        "spatial_shape": [axis if isinstance(axis, int) else "*" for axis in axes[2:]],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": classes if name in ("logits", "class_maps") else {},
    }


def _sections(card: Card) -> list[str]:
    """Return heading, sentence and table of each subject that there are figures of."""
    parts: list[str] = []
    for key, heading, sentence in SECTIONS:
        figures = dict(_at(card.metrics, [key]))
        if key == "confidence" and card.confidence:
            figures["rules"] = {name: value for name, value in card.confidence.items() if name != "quality"}
        if figures:
            parts += [f"## {heading}", sentence, _facts("figure", figures)]
    return parts


def _file_row(name: str, data: bytes) -> tuple[str, str, str]:
    return f"`{name}`", f"{len(data) / 1e6:.1f}", f"`{hashlib.sha256(data).hexdigest()}`"


def _facts(heading: str, tree: Mapping[str, Any]) -> str:
    return _table((heading, "value"), list(_scalars(tree).items()))


def _figures(metrics: Mapping[str, Any]) -> str:
    """Return one table with a column for each view, and a sentence for each view that was not measured."""
    found = [(heading, _at(metrics, path)) for path, heading in VIEWS]
    measured = {heading: _scalars(figures) for heading, figures in found if figures}
    notes = [f"**Not measured: {heading}.**" for heading, figures in found if not figures]
    if not measured:
        return "\n\n".join(notes)
    names = list(dict.fromkeys(name for figures in measured.values() for name in figures))
    rows = [(name, *(figures.get(name, "–") for figures in measured.values())) for name in names]
    return "\n\n".join([_table(("figure", *measured), rows), *notes])


def _at(tree: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    """Return the mapping at a path, an empty one where there is none."""
    node: Any = tree
    for key in path:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node if isinstance(node, Mapping) else {}


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
