from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from export.bundle import Golden, load_bundle
from export.errors import BundleError
from export.signing import SigningKey, Trust, new_key, sign
from kernels.spec import PreprocessSpec

Write = Callable[..., Path]
FILES = {
    "MODEL_CARD.md",
    "configs/metadata.json",
    "golden/grays.npy",
    "golden/logits.npy",
    "metrics.json",
    "model.onnx",
    "preprocess.json",
    "provenance.json",
}
MORE_FILES = {
    "confidence.json",
    "confidence.npz",
    "engines/report.json",
    "engines/sm_80-int8.engine",
    "engines/sm_90-fp16.engine",
    "golden/int8_logits.npy",
    "model.int8.onnx",
}
VIEW = {"accuracy": 0.9672, "macro": {"f1": 0.9658}}


def contents(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def unsigned(path: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(path).items() if name != "model.sig"}


def test_a_bundle_reads_back_as_it_was_written(
    tmp_path: Path, write: Write, trust: Trust, signing_key: SigningKey
) -> None:
    path = write(tmp_path / "deep" / "bundle", name="north", model_version="2.1")
    bundle = load_bundle(path, trust)
    assert (bundle.name, bundle.version, bundle.data_kind) == ("north", "2.1", "phantom")
    assert bundle.labels == ("glioma", "meningioma", "notumor", "pituitary")
    assert bundle.preprocess == PreprocessSpec(size=64)
    assert bundle.provenance == {"seed": 7, "scenario": "iid"}
    assert bundle.model_onnx == bundle.read("model.onnx") == (path / "model.onnx").read_bytes()
    assert bundle.golden is not None and bundle.golden.grays_NHW.shape == (2, 40, 50)
    assert bundle.signer == signing_key.public
    assert bundle.digest == hashlib.sha256((path / "MANIFEST.json").read_bytes()).hexdigest()
    assert set(bundle.files) == FILES
    assert set(contents(path)) == FILES | {"MANIFEST.json", "model.sig"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["deep"]
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["bundle"]


def test_a_bundle_with_all_that_there_can_be_reads_back(
    tmp_path: Path, write: Write, trust: Trust, full: dict[str, Any]
) -> None:
    bundle = load_bundle(write(tmp_path / "bundle", **full), trust)
    bundle.check_files()
    assert set(bundle.files) == FILES | MORE_FILES
    assert bundle.read("engines/sm_90-fp16.engine") == b"engine for an H100"
    assert bundle.read("model.int8.onnx") == full["int8_onnx"] != bundle.model_onnx
    assert bundle.confidence_files == full["confidence"]
    assert json.loads(bundle.read("engines/report.json")) == full["engine_report"]
    assert bundle.golden is not None and bundle.golden.int8_logits_NC is not None
    assert np.array_equal(bundle.golden.int8_logits_NC, full["golden"].int8_logits_NC)
    with pytest.raises(BundleError, match=r"^\.\./secret: is no file of the bundle"):
        bundle.read("../secret")


def test_a_folder_that_cannot_be_looked_at_is_told(tmp_path: Path, trust: Trust) -> None:
    with pytest.raises(BundleError, match="cannot be looked at"):
        load_bundle(tmp_path / ("x" * 300), trust)


def test_the_same_arguments_give_the_same_bytes_but_for_the_signature(tmp_path: Path, write: Write) -> None:
    figures = {"a": {"x": 1.0}, "b": {"y": 2.0}}
    first = write(tmp_path / "a", metrics=figures)
    assert unsigned(first) == unsigned(write(tmp_path / "b", metrics=dict(reversed(figures.items()))))
    assert unsigned(first) != unsigned(write(tmp_path / "c", metrics=figures, data_kind="mri"))


def test_writing_the_same_again_is_welcome_and_anything_else_is_refused(tmp_path: Path, write: Write) -> None:
    path = write(tmp_path / "bundle")
    before = contents(path)
    assert write(path) == path
    with pytest.raises(BundleError, match="holds a different bundle"):
        write(path, provenance={"seed": 8})
    with pytest.raises(BundleError, match="not trusted here"):
        write(path, key=new_key(tmp_path / "keys"))
    assert contents(path) == before
    (path / "model.onnx").write_bytes(bytes(len(before["model.onnx"])))
    with pytest.raises(BundleError, match=r"damaged bundle \(model.onnx"):
        write(path)
    assert (path / "model.onnx").read_bytes() == bytes(len(before["model.onnx"]))


def test_a_bundle_can_be_signed_elsewhere_and_later(
    tmp_path: Path, write: Write, trust: Trust, signing_key: SigningKey
) -> None:
    path = write(tmp_path / "bundle", key=None)
    assert write(path, key=None) == path
    with pytest.raises(BundleError, match="nobody signed this bundle"):
        load_bundle(path, trust)
    sign(path, signing_key)
    load_bundle(path, trust).check_files()


def test_a_folder_with_other_things_is_never_touched(tmp_path: Path, write: Write) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(BundleError, match="choose another folder"):
        write(tmp_path / "thesis")
    assert contents(tmp_path / "thesis") == {"chapter1.txt": b"years of work"}


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, write: Write) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BundleError, match="could not be written"):
        write(tmp_path / "file" / "bundle")
    with pytest.raises(BundleError, match=r"metrics.json: cannot be written as JSON"):
        write(tmp_path / "bundle", metrics={"accuracy": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_model_exported_for_something_else_is_refused_at_writing(
    tmp_path: Path, write: Write, make_onnx: Callable[..., onnx.ModelProto]
) -> None:
    for model in (make_onnx(PreprocessSpec(size=96)), make_onnx(labels=("a", "b", "c", "d"))):
        for argument, file in (("onnx_bytes", "model.onnx"), ("int8_onnx", "model.int8.onnx")):
            with pytest.raises(BundleError, match=rf"^{file}: was exported for gliofed"):
                write(tmp_path / "bundle", **{argument: model.SerializeToString()})
    for junk in (b"", b"not an onnx file"):
        with pytest.raises(BundleError, match=r"^model.onnx"):
            write(tmp_path / "bundle", onnx_bytes=junk)


def test_a_quantized_twin_with_other_outputs_is_refused(
    tmp_path: Path, write: Write, full: dict[str, Any], make_onnx: Callable[..., onnx.ModelProto]
) -> None:
    model = make_onnx()
    del model.graph.output[2:]
    with pytest.raises(BundleError, match=r"^model.int8.onnx: has other outputs than model.onnx"):
        write(tmp_path / "bundle", **(full | {"int8_onnx": model.SerializeToString()}))


def test_weights_outside_the_file_are_refused_at_writing(
    tmp_path: Path, write: Write, make_onnx: Callable[..., onnx.ModelProto]
) -> None:
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
        ({"confidence": {"evil.py": b""}}, r"cannot hold \['evil.py'\]"),
        ({"confidence": {"confidence.npz": b""}}, "without confidence.json"),
    ],
)
def test_arguments_that_make_no_bundle_are_refused(
    tmp_path: Path, write: Write, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        write(tmp_path / "bundle", **changes)


@pytest.mark.parametrize("name", ["..-fp16", "sm_90/x-fp16", "sm_90", "sm-90-fp16", "", "sm_90-fp\n", "SM_90-fp16"])
def test_engines_are_named_by_architecture_and_precision(tmp_path: Path, write: Write, name: str) -> None:
    with pytest.raises(BundleError, match="is no name of an engine"):
        write(tmp_path / "bundle", engines={name: b"engine"})


def test_golden_images_must_fit_their_scores() -> None:
    grays, logits = np.zeros((2, 40, 50), np.uint8), np.ones((2, 4), np.float32)
    for bad in (grays.astype(np.float32), grays[0], grays[:0]):
        with pytest.raises(BundleError, match="golden images must be uint8"):
            Golden(grays_NHW=bad, logits_NC=logits)
    for bad in (logits[:1], logits.astype(np.float64), logits * np.float32(np.nan)):
        with pytest.raises(BundleError, match=r"golden/logits.npy"):
            Golden(grays_NHW=grays, logits_NC=bad)
    with pytest.raises(BundleError, match=r"golden/int8_logits.npy"):
        Golden(grays_NHW=grays, logits_NC=logits, int8_logits_NC=logits[:, :3])


def test_metadata_speak_of_every_output_in_monai_s_words(tmp_path: Path, write: Write) -> None:
    metadata = json.loads((write(tmp_path / "bundle") / "configs" / "metadata.json").read_text())
    mandatory = {"version", "task", "description", "authors", "copyright", "network_data_format"}
    assert mandatory <= metadata.keys()
    assert not {"monai_version", "pytorch_version", "numpy_version"} & metadata.keys()
    outputs = metadata["network_data_format"]["outputs"]
    assert list(outputs) == ["class_maps", "embedding", "logits"]
    specifier = {"type", "format", "modality", "num_channels", "spatial_shape", "dtype", "value_range"}
    for tensor in (*outputs.values(), metadata["network_data_format"]["inputs"]["images"]):
        assert specifier | {"is_patch_data", "channel_def"} == tensor.keys()
    assert (outputs["embedding"]["format"], outputs["embedding"]["num_channels"]) == ("latent", 6)
    assert outputs["class_maps"]["spatial_shape"] == [2, 2]


def test_the_card_shouts_phantoms_and_shows_every_view(tmp_path: Path, write: Write) -> None:
    metrics = {"validation": VIEW, "test": {"as_published": VIEW, "deduplicated": {"accuracy": 0.9123}}}
    card = (write(tmp_path / "bundle", metrics=metrics) / "MODEL_CARD.md").read_text()
    assert "# ⚠ TRAINED ON PHANTOMS, NOT ON PATIENTS" in card
    assert "| accuracy | 0.9672 | 0.9672 | 0.9123 |" in card
    assert "| macro.f1 | 0.9658 | 0.9658 | – |" in card
    for words in ("Not a medical device", "Apache-2.0", "label 2: `notumor`", "| scenario | iid |", "not calibrated"):
        assert words in card
    assert "PHANTOMS" not in (write(tmp_path / "mri", data_kind="mri") / "MODEL_CARD.md").read_text()


def test_the_card_names_the_classes_of_per_class_figures_and_leaves_tables_out(tmp_path: Path, write: Write) -> None:
    view = {
        "accuracy_interval": (0.5, 0.75),
        "per_class": ({"name": "glioma", "recall": 0.25}, {"name": "notumor", "recall": 1.0}),
        "confusion": ((3, 1), (0, 4)),
        "undefined": (),
    }
    card = (write(tmp_path / "bundle", metrics={"test": {"as_published": view}}) / "MODEL_CARD.md").read_text()
    for row in (
        "| accuracy_interval | 0.5000, 0.7500 |",
        "| per_class.glioma.recall | 0.2500 |",
        "| per_class.notumor.recall | 1.0000 |",
    ):
        assert row in card
    assert "confusion" not in card


def test_the_card_says_what_was_not_measured(tmp_path: Path, write: Write) -> None:
    one = write(tmp_path / "one", metrics={"test": {"as_published": {"accuracy": 0.5}}}) / "MODEL_CARD.md"
    assert "**Not measured: test, deduplicated (no near-duplicate in training).**" in one.read_text()
    none = write(tmp_path / "none", metrics={}) / "MODEL_CARD.md"
    assert none.read_text().count("**Not measured:") == 3


def test_card_and_metadata_tell_of_calibration_and_the_twin_where_there_are_figures(
    tmp_path: Path, write: Write, full: dict[str, Any]
) -> None:
    metrics = {
        "int8": {"drop_points": 0.12, "accepted": True},
        "explanations": {"class_maps": {"energy": 0.25}},
        "confidence": {"test": {"calibration_error": 0.0251, "bins": [{"low": 0.0}]}},
    }
    path = write(tmp_path / "bundle", metrics=metrics, **full)
    card, metadata = (path / "MODEL_CARD.md").read_text(), (path / "configs" / "metadata.json").read_text()
    for row in ("| rules.temperature | 1.5000 |", "| test.calibration_error | 0.0251 |", "| drop_points | 0.1200 |"):
        assert row in card
    assert "| class_maps.energy | 0.2500 |" in card
    assert "`engines/sm_90-fp16.engine`" in card
    for text in (card, metadata):
        assert "not calibrated" not in text
        assert "Probabilities are calibrated" in text


def test_serving_needs_no_torch_and_reading_no_model_signing() -> None:
    code = (
        "import sys; sys.modules |= dict.fromkeys(['torch', 'onnx', 'model_signing', 'sigstore', 'OpenSSL']); "
        "import export.bundle, export.signing, export.predictor, service.keys"
    )
    flags = ["-P"] * sys.flags.safe_path + ["-S"] * sys.flags.no_site
    subprocess.run([sys.executable, *flags, "-c", code], check=True, timeout=60)
