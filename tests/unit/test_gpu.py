"""The same calls on a GPU as on the CPU. Skipped, with the reason, where there is none."""

from __future__ import annotations

import pytest
import torch

from fl.model.speed import SpeedSettings, place, resolve_execution
from fl.model.vgg import NetworkSettings, SplitVgg19, initialise_from_nothing

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU; torch sees none on this machine"),
]


def _logits(*, on_gpu: bool, compiled: bool) -> torch.Tensor:
    model = SplitVgg19(NetworkSettings(width=0.25))
    initialise_from_nothing(model, torch.Generator().manual_seed(0))
    model.eval()
    images_NCHW = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    if not on_gpu:
        with torch.no_grad():
            return model(images_NCHW)
    execution = resolve_execution(SpeedSettings(precision="float32", compile="on" if compiled else "off"))
    place(model, execution)
    with torch.no_grad(), execution.autocast():
        return model(images_NCHW.to(execution.device, memory_format=execution.memory_format)).cpu()


@pytest.mark.parametrize("compiled", [False, True])
def test_the_gpu_gives_the_cpus_logits(compiled: bool) -> None:
    torch.testing.assert_close(
        _logits(on_gpu=True, compiled=compiled), _logits(on_gpu=False, compiled=False), rtol=1e-2, atol=1e-2
    )


def test_a_gpu_is_chosen_and_compiles_by_default() -> None:
    execution = resolve_execution(SpeedSettings())
    assert execution.device.type == "cuda"
    assert execution.compiled
