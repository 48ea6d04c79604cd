"""Our package `kernels` shares its name with Hugging Face's: both of its users must work beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import torch
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.utils import is_kernels_available
from diffusers import UNet2DConditionModel
import kernels.ops

# Were our version number to fall into the range it accepts, transformers would import names we do not have.
assert not is_kernels_available(), "transformers takes our package for Hugging Face's"

text = CLIPTextModel(CLIPTextConfig(
    vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    max_position_embeddings=8, bos_token_id=0, eos_token_id=1, pad_token_id=1))
prompt = text(torch.ones(1, 8, dtype=torch.long)).last_hidden_state
unet = UNet2DConditionModel(
    sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16)
print("shape", *unet(torch.zeros(1, 4, 8, 8), 1, prompt).sample.shape)
print("kernels", kernels.__file__)
"""


@pytest.mark.skipif(
    find_spec("transformers") is None or find_spec("diffusers") is None,
    reason="transformers and diffusers are not installed (extra `dev`)",
)
def test_transformers_and_diffusers_build_models_where_our_kernels_is_importable() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "shape 1 4 8 8" in done.stdout
    assert f"kernels {ROOT / 'kernels'}" in done.stdout
