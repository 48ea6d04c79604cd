"""Speed settings change how fast a network runs, and what it computes only within the tolerances stated here.

Tolerances, relative to the largest magnitude compared: layout 1e-5; compiled against eager 1e-5 for values and 1e-4
for gradients; bfloat16 (8 bits of mantissa, through 16 convolutions) 0.05.
"""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from fl.model.speed import Execution, SpeedSettings, has_fast_bfloat16, place, resolve_execution
from fl.model.vgg import NetworkSettings, SplitVgg19, initialise_from_nothing

NETWORK = NetworkSettings(width=0.125, frozen_through="block4_conv3", dropout=0.0)
IMAGES_NCHW = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
LABELS_N = torch.tensor([0, 1, 2, 3])

LAYOUT, COMPILED, COMPILED_GRADIENT, BFLOAT16 = 1e-5, 1e-5, 1e-4, 0.05

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a C++ compiler"
)


def execution(**settings: object) -> Execution:
    defaults = {"precision": "float32", "compile": "off"}
    return resolve_execution(SpeedSettings.model_validate({**defaults, **settings}))


def run(how: Execution) -> dict[str, Tensor]:
    """Features of the prefix, logits, and every trained parameter's gradient."""
    torch.set_num_threads(1)
    model = SplitVgg19(NETWORK)
    initialise_from_nothing(model, torch.Generator().manual_seed(1))
    place(model, how)
    images = IMAGES_NCHW.to(how.device, memory_format=how.memory_format)
    with how.autocast():
        with torch.no_grad():
            features = model.prefix(images)
        logits = model.classify(features)
    torch.nn.functional.cross_entropy(logits.float(), LABELS_N.to(how.device)).backward()
    gradients = {name: p.grad.float().cpu() for name, p in model.trained_parameters() if p.grad is not None}
    assert len(gradients) == 12
    return {"features": features.float().cpu(), "logits": logits.detach().float().cpu(), **gradients}


def deviation(found: Tensor, truth: Tensor) -> float:
    assert truth.abs().max() > 1e-6, "nothing to compare"
    return float((found - truth).abs().max() / truth.abs().max())


def deviations(found: dict[str, Tensor], truth: dict[str, Tensor]) -> tuple[float, float]:
    """Largest deviation of features and logits, and of gradients."""
    values = {name: deviation(found[name], truth[name]) for name in truth}
    forward = max(values.pop("features"), values.pop("logits"))
    return forward, max(values.values())


def test_layout_changes_nothing_beyond_rounding() -> None:
    forward, backward = deviations(run(execution(channels_last=True)), run(execution(channels_last=False)))

    assert forward <= LAYOUT
    assert backward <= 10 * LAYOUT


def test_bfloat16_stays_near_float32() -> None:
    low = execution(precision="bfloat16")
    assert low.dtype is torch.bfloat16

    forward, backward = deviations(run(low), run(execution()))

    assert 1e-6 < forward <= BFLOAT16, "0 would mean that nothing ran in bfloat16"
    assert backward <= 2 * BFLOAT16


def run_part(how: Execution, part: str) -> dict[str, Tensor]:
    """A few layers of the prefix, or the last of the tail with gradients: enough of each kind, quick to compile."""
    torch.set_num_threads(1)
    through = {"prefix": "block2_conv2", "tail": "block5_conv2"}[part]
    model = SplitVgg19(NETWORK.model_copy(update={"frozen_through": through}))
    initialise_from_nothing(model, torch.Generator().manual_seed(1))
    place(model, how)
    if part == "prefix":
        with torch.no_grad():
            return {"features": model.prefix(IMAGES_NCHW.to(how.device, memory_format=how.memory_format)).cpu()}
    features_NChw = torch.rand(4, 64, 4, 4, generator=torch.Generator().manual_seed(2))
    logits = model.classify(features_NChw.to(how.device, memory_format=how.memory_format))
    torch.nn.functional.cross_entropy(logits, LABELS_N.to(how.device)).backward()
    gradients = {name: p.grad.cpu() for name, p in model.trained_parameters() if p.grad is not None}
    assert len(gradients) == 6
    return {"logits": logits.detach().cpu(), **gradients}


def start_compiling_anew() -> None:
    """Forget what was compiled in this process: torch counts its limit over all models."""
    torch._dynamo.reset()
    counters.clear()


@needs_compiler
@pytest.mark.parametrize("part", ["prefix", "tail"])
def test_compiled_and_eager_agree_gradients_included(part: str) -> None:
    start_compiling_anew()
    found, truth = run_part(execution(compile="on"), part), run_part(execution(), part)

    assert counters["stats"]["unique_graphs"] == 1, "nothing was compiled, or the eager one was"
    for name in truth:
        assert deviation(found[name], truth[name]) <= (COMPILED_GRADIENT if "." in name else COMPILED), name


@needs_compiler
def test_batches_of_many_sizes_are_compiled_for_twice_and_not_each_anew() -> None:
    """Sites end their epochs with batches of any size; torch gives up compiling after eight."""
    how = execution(compile="on")
    model = place(SplitVgg19(NETWORK.model_copy(update={"frozen_through": "block5_conv3"})), how).eval()
    start_compiling_anew()

    for batch in (16, *range(2, 14), 16):
        features_NChw = torch.rand(batch, 64, 2, 2).to(how.device, memory_format=how.memory_format)
        with torch.no_grad():
            model.classify(features_NChw)

    assert counters["stats"]["unique_graphs"] <= 2


def test_compiling_keeps_parameter_names() -> None:
    model = SplitVgg19(NETWORK)
    names = list(model.state_dict())

    place(model, execution(compile="on"))

    assert list(model.state_dict()) == names
    assert [name for name, _ in model.trained_parameters()][-1] == "head.bias"


def test_automatic_choices_follow_the_machine() -> None:
    auto = resolve_execution(SpeedSettings())
    on_gpu = torch.cuda.is_available()

    assert auto.device.type == ("cuda" if on_gpu else "cpu")
    assert auto.compiled == on_gpu, "on the CPU compiling costs more than a short run gains"
    assert auto.dtype is (torch.bfloat16 if has_fast_bfloat16(auto.device) else torch.float32)
    assert auto.memory_format is torch.channels_last


def test_said_choices_are_kept() -> None:
    said = execution(precision="bfloat16", compile="on", channels_last=False)

    assert (said.dtype, said.compiled, said.memory_format) == (torch.bfloat16, True, torch.contiguous_format)
    assert execution().dtype is torch.float32 and not execution().compiled


def test_nothing_frozen_leaves_an_empty_prefix_that_can_be_placed() -> None:
    model = SplitVgg19(NETWORK.model_copy(update={"frozen_through": None}))

    place(model, execution(compile="on"))

    assert torch.equal(model.prefix(IMAGES_NCHW), IMAGES_NCHW)
