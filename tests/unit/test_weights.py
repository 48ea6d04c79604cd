"""Sources of first weights: a VGG16 file becomes an equivalent VGG19, and every fault says what to do."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from fl.errors import WeightsError
from fl.model.vgg import BLOCKS, NetworkSettings, SplitVgg19
from fl.model.weights import (
    HEAD_SLICES,
    IMAGENET_CAFFE,
    IMAGENET_TORCHVISION,
    WeightSettings,
    load_weights,
    read_convolutions,
)
from kernels.spec import UNIT

WIDTH = 0.125
_SHARED = Path(__file__).parents[2].parent / "shared"
REAL_FILE = (
    Path(os.environ.get("GLIOFED_REAL_DATA", _SHARED / "data")).parent
    / "weights"
    / "vgg16-imagenet-conv.fp16.safetensors"
)
VGG16_DEPTHS = (2, 2, 3, 3, 3)


def tensors(depths: tuple[int, ...]) -> dict[str, Tensor]:
    """He-initialised convolutions of a narrow VGG with these depths, in fp16 as the shared file is."""
    generator, state, in_channels = torch.Generator().manual_seed(2), {}, 3
    for block, (depth, (_, channels)) in enumerate(zip(depths, BLOCKS, strict=True), 1):
        out_channels = max(8, round(channels * WIDTH))
        for conv in range(1, depth + 1):
            weight = torch.randn(out_channels, in_channels, 3, 3, generator=generator) * (2 / (9 * in_channels)) ** 0.5
            state[f"block{block}_conv{conv}.weight"] = weight.half()
            state[f"block{block}_conv{conv}.bias"] = (torch.randn(out_channels, generator=generator) * 0.1).half()
            in_channels = out_channels
    return state


def written(folder: Path, state: dict[str, Tensor]) -> Path:
    save_file(state, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def from_file(path: Path) -> WeightSettings:
    return WeightSettings(source="file", path=path, normalization="caffe")


def vgg16(state: dict[str, Tensor], images_NCHW: Tensor) -> Tensor:
    """The VGG16 function, written out."""
    x = images_NCHW
    for block, depth in enumerate(VGG16_DEPTHS, 1):
        for conv in range(1, depth + 1):
            name = f"block{block}_conv{conv}"
            x = functional.relu(
                functional.conv2d(x, state[f"{name}.weight"].float(), state[f"{name}.bias"].float(), padding=1)
            )
        x = functional.max_pool2d(x, 2)
    return x


def test_vgg16_file_becomes_a_vgg19_with_exactly_its_function(tmp_path: Path) -> None:
    state = tensors(VGG16_DEPTHS)
    model = SplitVgg19(NetworkSettings(width=WIDTH)).eval()

    load_weights(model, from_file(written(tmp_path, state)), seed=1)

    images_NCHW = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = model.features()(images_NCHW), vgg16(state, images_NCHW)
    assert expected.max() > 0.05
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_vgg19_file_is_taken_as_it_is(tmp_path: Path) -> None:
    state = tensors((2, 2, 4, 4, 4))

    read = read_convolutions(written(tmp_path, state))

    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name].float()) for name in state)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("block2_conv1.bias"), r"block2_conv1\.bias has nothing, the network needs \(16,\)"),
        (lambda state: state.pop("block3_conv3.weight"), r"block3_conv3\.weight has nothing"),
        (lambda state: state.pop("block3_conv2.weight"), r"block3_conv2\.weight has nothing"),
        (
            lambda state: state.update({"block1_conv2.weight": torch.zeros(8, 9, 3, 3)}),
            r"block1_conv2\.weight has shape \(8, 9, 3, 3\), the network needs \(8, 8, 3, 3\)",
        ),
    ],
    ids=["missing bias", "missing last", "missing middle", "wrong shape"],
)
def test_missing_or_misshapen_tensor_is_named(tmp_path: Path, spoil: object, message: str) -> None:
    state = tensors(VGG16_DEPTHS)
    spoil(state)  # type: ignore[operator]

    with pytest.raises(WeightsError, match=message):
        load_weights(SplitVgg19(NetworkSettings(width=WIDTH)), from_file(written(tmp_path, state)), seed=1)


def test_weights_of_another_width_name_the_setting_to_change(tmp_path: Path) -> None:
    path = written(tmp_path, tensors(VGG16_DEPTHS))

    with pytest.raises(WeightsError, match=r"model\.network\.width"):
        load_weights(SplitVgg19(NetworkSettings(width=0.25)), from_file(path), seed=1)


@pytest.mark.parametrize("damage", ["truncated", "no safetensors", "empty"])
def test_damaged_file_is_a_weights_error_that_names_it(tmp_path: Path, damage: str) -> None:
    path = written(tmp_path, tensors(VGG16_DEPTHS))
    data = path.read_bytes()
    path.write_bytes({"truncated": data[: len(data) // 2], "no safetensors": b"PK\x03\x04" * 400, "empty": b""}[damage])

    with pytest.raises(WeightsError, match=r"weights\.safetensors: not a readable safetensors file"):
        read_convolutions(path)


def test_file_that_does_not_exist_says_which_setting(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"model\.weights\.path: no file at .*nowhere"):
        load_weights(SplitVgg19(NetworkSettings(width=WIDTH)), from_file(tmp_path / "nowhere.safetensors"), seed=1)


def test_same_seed_gives_the_same_head_and_another_seed_another(tmp_path: Path) -> None:
    settings = from_file(written(tmp_path, tensors(VGG16_DEPTHS)))
    models = [SplitVgg19(NetworkSettings(width=WIDTH)) for _ in range(3)]
    for model, seed in zip(models, (7, 7, 8), strict=True):
        torch.manual_seed(seed * 100)  # the global generator must play no part
        torch.rand(len(models))
        load_weights(model, settings, seed=seed)

    heads = [model.head.weight for model in models]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert all(not model.head.bias.any() for model in models)


def test_random_source_is_a_function_of_the_seed() -> None:
    states = []
    for seed in (3, 3, 4):
        model = SplitVgg19(NetworkSettings(width=WIDTH))
        load_weights(model, WeightSettings(source="random"), seed=seed)
        states.append(model.state_dict())

    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["prefix.block1_conv1.weight"], states[2]["prefix.block1_conv1.weight"])


def test_every_source_records_its_input_convention() -> None:
    conventions = {"torchvision": IMAGENET_TORCHVISION, "caffe": IMAGENET_CAFFE, "unit": UNIT}
    for name, convention in conventions.items():
        settings = WeightSettings(source="file", path=Path("w"), normalization=name)  # type: ignore[arg-type]
        assert settings.input_normalization() == convention
    assert WeightSettings(source="torchvision").input_normalization() == IMAGENET_TORCHVISION
    assert WeightSettings(source="random").input_normalization() == HEAD_SLICES
    assert IMAGENET_CAFFE.mean == (103.939, 116.779, 123.68) and IMAGENET_CAFFE.channel_order == "bgr"


@pytest.mark.parametrize(
    "fields",
    [{"source": "file"}, {"source": "file", "path": "w"}, {"source": "random", "path": "w"}, {"normalization": "unit"}],
)
def test_half_given_file_sources_are_refused(fields: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="goes with source `file`"):
        WeightSettings.model_validate(fields)


@pytest.fixture
def hub_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and a proxy on a port where nobody listens: refused at once, whatever network there is."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def test_hub_out_of_reach_fails_soon_and_says_what_to_do(hub_without_network: Path) -> None:
    started = time.monotonic()

    with pytest.raises(WeightsError) as caught:
        load_weights(SplitVgg19(NetworkSettings()), WeightSettings(source="torchvision"), seed=1)

    assert time.monotonic() - started < 35
    for hint in (str(hub_without_network), "vgg19-dcbb9e9d.pth", "source: file", "source: random"):
        assert hint in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"<html>please log in</html>", b"\x80\x02]q\x00."])
def test_file_in_the_hub_cache_that_is_no_checkpoint_says_what_to_do(hub_without_network: Path, content: bytes) -> None:
    hub_without_network.mkdir(parents=True)
    (hub_without_network / "vgg19-dcbb9e9d.pth").write_bytes(content)

    with pytest.raises(WeightsError, match=r"copy a whole vgg19-dcbb9e9d\.pth"):
        load_weights(SplitVgg19(NetworkSettings()), WeightSettings(source="torchvision"), seed=1)


@pytest.mark.real_data
@pytest.mark.skipif(not REAL_FILE.is_file(), reason=f"no weights at {REAL_FILE}; they lie beside GLIOFED_REAL_DATA")
def test_shared_imagenet_file_fills_a_whole_vgg19() -> None:
    model = SplitVgg19(NetworkSettings()).eval()

    load_weights(model, from_file(REAL_FILE), seed=1)

    layers = {name: layer for name, layer in model.features().named_children() if isinstance(layer, nn.Conv2d)}
    assert len(layers) == 16
    assert torch.equal(layers["block5_conv4"].weight[:, :, 1, 1], torch.eye(512))
    mean_BGR = torch.tensor(IMAGENET_CAFFE.mean)[None, :, None, None]
    with torch.no_grad():
        activity = model.features()(torch.rand(1, 3, 64, 64) * 255 - mean_BGR)
    assert torch.isfinite(activity).all() and activity.max() > 1
