from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.bundle import Golden, canonical_json, load_bundle, write_bundle
from export.errors import BundleError
from kernels.spec import PreprocessSpec

LABELS = ("glioma", "meningioma", "notumor", "pituitary")
SPEC = PreprocessSpec(size=64)
METRICS = {
    "as_published": {"accuracy": 0.9672, "macro": {"f1": 0.9658}, "confusion": [[3, 1], [0, 4]]},
    "deduplicated": {"accuracy": 0.9123, "macro": {"f1": 0.9004}},
}
FILES = (
    "MODEL_CARD.md",
    "configs/metadata.json",
    "golden/grays.npy",
    "golden/logits.npy",
    "metrics.json",
    "model.onnx",
    "preprocess.json",
    "provenance.json",
)


def make_onnx(spec: PreprocessSpec = SPEC, labels: tuple[str, ...] = LABELS) -> onnx.ModelProto:
    """Return a file that says what ours say; what it computes does not matter to a bundle."""
    weight = numpy_helper.from_array(np.arange(6, dtype=np.float32), "head.weight")
    node = helper.make_node("Identity", ["head.weight"], ["logits"])
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [6])
    model = helper.make_model(helper.make_graph([node], "tiny", [], [output], [weight]))
    properties = {"gliofed.preprocess": canonical_json(spec.to_json()), "gliofed.labels": json.dumps(labels)}
    helper.set_model_props(model, properties)
    return model


def make_golden() -> Golden:
    grays = np.random.default_rng(0).integers(0, 255, (2, 40, 50), np.uint8)
    return Golden(grays_NHW=grays, logits_NC=np.ones((2, 4), np.float32))


def write(path: Path, **changes: Any) -> Path:
    arguments: dict[str, Any] = {
        "onnx_bytes": make_onnx().SerializeToString(deterministic=True),
        "preprocess": SPEC,
        "labels": LABELS,
        "metrics": METRICS,
        "provenance": {"seed": 7, "scenario": "iid", "started": "2025-01-02"},
        "data_kind": "phantom",
        "golden": make_golden(),
    }
    return write_bundle(path, **(arguments | changes))


def contents(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def edit_manifest(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / "MANIFEST.json").read_text())
    edit(manifest)
    (path / "MANIFEST.json").write_text(json.dumps(manifest))


def test_a_bundle_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = write(tmp_path / "deep" / "bundle")
    bundle = load_bundle(path)
    assert (bundle.preprocess, bundle.labels, bundle.data_kind) == (SPEC, LABELS, "phantom")
    assert bundle.metrics == METRICS
    assert bundle.provenance == {"seed": 7, "scenario": "iid", "started": "2025-01-02"}
    assert bundle.model_onnx == (path / "model.onnx").read_bytes()
    assert bundle.golden is not None
    assert np.array_equal(bundle.golden.grays_NHW, make_golden().grays_NHW)
    assert bundle.digest == hashlib.sha256((path / "MANIFEST.json").read_bytes()).hexdigest()
    assert sorted(contents(path)) == sorted([*FILES, "MANIFEST.json"])


def test_golden_images_are_optional(tmp_path: Path) -> None:
    assert load_bundle(write(tmp_path / "bundle", golden=None)).golden is None


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    reordered = dict(reversed(METRICS.items()))
    assert contents(write(tmp_path / "a")) == contents(write(tmp_path / "b", metrics=reordered))
    assert contents(tmp_path / "a") != contents(write(tmp_path / "c", data_kind="mri"))


def test_writing_the_same_again_is_welcome_and_anything_else_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "bundle")
    before = contents(path)
    assert write(path) == path
    with pytest.raises(BundleError, match="holds a different bundle"):
        write(path, provenance={"seed": 8})
    assert contents(path) == before
    (path / "metrics.json").write_bytes(b"{}\n")
    with pytest.raises(BundleError, match=r"damaged bundle \(metrics.json"):
        write(path)
    assert (path / "metrics.json").read_bytes() == b"{}\n"


def test_a_folder_with_other_things_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(BundleError, match="choose another folder"):
        write(tmp_path / "thesis")
    assert contents(tmp_path / "thesis") == {"chapter1.txt": b"years of work"}


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BundleError, match="could not be written"):
        write(tmp_path / "file" / "bundle")
    with pytest.raises(BundleError, match=r"metrics.json: cannot be written as JSON"):
        write(tmp_path / "bundle", metrics={"accuracy": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", FILES)
def test_an_altered_file_is_named_with_what_was_expected_and_found(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "bundle")
    data = bytearray((path / name).read_bytes())
    expected = hashlib.sha256(data).hexdigest()
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"has SHA-256 {hashlib.sha256(data).hexdigest()}") as caught:
        load_bundle(path)
    assert caught.value.file == name
    assert expected in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_a_shorter_and_a_longer_file_are_named(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "bundle")
    data = (path / name).read_bytes()
    for changed in (data[:-1], data + b"\n"):
        (path / name).write_bytes(changed)
        with pytest.raises(BundleError, match=rf"^{name}: has {len(changed)} bytes"):
            load_bundle(path)
    (path / name).unlink()
    with pytest.raises(BundleError, match=rf"^{name}: is in the manifest but not in"):
        load_bundle(path)


@pytest.mark.parametrize("extra", ["notes.txt", "configs/model.py", ".hidden", "new/model.onnx"])
def test_a_file_that_the_manifest_does_not_name_is_refused(tmp_path: Path, extra: str) -> None:
    path = write(tmp_path / "bundle")
    (path / extra).parent.mkdir(exist_ok=True)
    (path / extra).write_text("hello")
    with pytest.raises(BundleError, match=rf"^{extra}: is in .* but not in the manifest"):
        load_bundle(path)


def test_links_are_refused_even_to_the_right_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "bundle")
    shutil.move(path / "model.onnx", tmp_path / "elsewhere.onnx")
    (path / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleError, match=r"^model.onnx: is a link"):
        load_bundle(path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "configs/../../secret", "a\\..\\b", "model.onnx/"])
def test_a_manifest_cannot_name_paths_outside_or_beside_the_bundle(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "bundle")
    (tmp_path / "secret").write_bytes(b"secret")
    entry = {"sha256": hashlib.sha256(b"secret").hexdigest(), "size_bytes": 6}
    edit_manifest(path, lambda manifest: manifest["files"].update({name: entry}))
    with pytest.raises(BundleError, match="no file of a version 1 bundle") as caught:
        load_bundle(path)
    assert repr(name) in str(caught.value)


def _set(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest.__setitem__(key, value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_set("format_version", 2), "version 2; this gliofed reads"),
        (_set("format_version", True), "version True; this gliofed reads"),
        (_set("format", "zip"), "format is 'zip'"),
        (_set("files", []), "expected format, format_version and files"),
        (_set("comment", "hi"), "has keys"),
        (lambda manifest: manifest["files"].pop("preprocess.json"), r"does not name \['preprocess.json'\]"),
        (lambda manifest: manifest["files"].pop("golden/grays.npy"), "expected both or none"),
        (lambda manifest: manifest["files"]["model.onnx"].update(sha256="0"), "expected 64 hexadecimal"),
        (lambda manifest: manifest["files"]["model.onnx"].update(size_bytes=-1), "expected a whole number"),
        (lambda manifest: manifest["files"]["model.onnx"].pop("sha256"), "expected sha256 and size_bytes"),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = write(tmp_path / "bundle")
    edit_manifest(path, edit)
    with pytest.raises(BundleError, match=message) as caught:
        load_bundle(path)
    assert caught.value.file == "MANIFEST.json"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 1, "format": 2}', '{"format": NaN}', "\xff"])
def test_a_manifest_that_is_not_plain_json_is_refused(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "bundle")
    (path / "MANIFEST.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=r"^MANIFEST.json"):
        load_bundle(path)


def test_no_bundle_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is none"):
        load_bundle(tmp_path / "nothing")
    with pytest.raises(BundleError, match="is missing from"):
        load_bundle(tmp_path)


def test_preprocessing_that_this_version_does_not_know_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "bundle")
    spec = SPEC.to_json() | {"semantics": "bone-v9"}
    data = json.dumps(spec).encode()
    (path / "preprocess.json").write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    edit_manifest(path, lambda manifest: manifest["files"].update({"preprocess.json": entry}))
    with pytest.raises(BundleError, match=r"^preprocess.json: is no preprocessing"):
        load_bundle(path)


def test_a_model_exported_for_something_else_is_refused_at_writing(tmp_path: Path) -> None:
    for model in (make_onnx(PreprocessSpec(size=96)), make_onnx(labels=("a", "b", "c", "d"))):
        with pytest.raises(BundleError, match=r"^model.onnx: was exported for gliofed"):
            write(tmp_path / "bundle", onnx_bytes=model.SerializeToString())
    for junk in (b"", b"not an onnx file"):
        with pytest.raises(BundleError, match=r"^model.onnx"):
            write(tmp_path / "bundle", onnx_bytes=junk)


def test_weights_outside_the_file_are_refused_at_writing(tmp_path: Path) -> None:
    model = make_onnx()
    weight = model.graph.initializer[0]
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../weights.bin")
    with pytest.raises(BundleError, match="keeps weights outside the file"):
        write(tmp_path / "bundle", onnx_bytes=model.SerializeToString())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ()}, "expected at least one"),
        ({"labels": ("a", "a")}, "each once"),
        ({"data_kind": "patients"}, "data_kind is 'patients'"),
    ],
)
def test_arguments_that_make_no_bundle_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        write(tmp_path / "bundle", **changes)


def test_golden_images_must_fit_their_scores() -> None:
    grays, logits = make_golden().grays_NHW, make_golden().logits_NC
    for bad in (grays.astype(np.float32), grays[0], grays[:0]):
        with pytest.raises(BundleError, match="golden images must be uint8"):
            Golden(grays_NHW=bad, logits_NC=logits)
    for bad in (logits[:1], logits.astype(np.float64), logits * np.float32(np.nan)):
        with pytest.raises(BundleError, match=r"golden/logits.npy"):
            Golden(grays_NHW=grays, logits_NC=bad)


def test_the_card_shouts_phantoms_and_shows_both_views(tmp_path: Path) -> None:
    card = (write(tmp_path / "bundle") / "MODEL_CARD.md").read_text()
    assert "# ⚠ TRAINED ON PHANTOMS, NOT ON PATIENTS" in card
    assert "| accuracy | 0.9672 | 0.9123 |" in card
    assert "| macro.f1 | 0.9658 | 0.9004 |" in card
    for words in (
        "Not a medical device",
        "Apache-2.0",
        SPEC.digest(),
        "label 2: `notumor`",
        "| scenario | iid |",
    ):
        assert words in card
    assert "PHANTOMS" not in (write(tmp_path / "mri", data_kind="mri") / "MODEL_CARD.md").read_text()


def test_the_card_names_the_classes_of_per_class_figures_and_leaves_tables_out(tmp_path: Path) -> None:
    view = {
        "accuracy_interval": (0.5, 0.75),
        "per_class": ({"name": "glioma", "recall": 0.25}, {"name": "notumor", "recall": 1.0}),
        "confusion": ((3, 1), (0, 4)),
        "undefined": (),
    }
    card = (write(tmp_path / "bundle", metrics={"as_published": view}) / "MODEL_CARD.md").read_text()
    for row in (
        "| accuracy_interval | 0.5000, 0.7500 |",
        "| per_class.glioma.recall | 0.2500 |",
        "| per_class.notumor.recall | 1.0000 |",
    ):
        assert row in card
    assert "confusion" not in card


def test_the_card_says_what_was_not_measured(tmp_path: Path) -> None:
    one = write(tmp_path / "one", metrics={"as_published": {"accuracy": 0.5}}) / "MODEL_CARD.md"
    assert "**Not measured: deduplicated (no near-duplicate in training).**" in one.read_text()
    none = write(tmp_path / "none", metrics={}) / "MODEL_CARD.md"
    assert none.read_text().count("**Not measured:") == 2


def test_serving_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import export.bundle, export.predictor"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
