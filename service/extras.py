"""What a slim install lacks, and what to install for it."""

from __future__ import annotations

TRAINING = frozenset(
    {
        "flwr",
        "jinja2",
        "ml_dtypes",
        "nibabel",
        "nilearn",
        "onnx",
        "psutil",
        "ray",
        "safetensors",
        "scipy",
        "torch",
        "torchvision",
    }
)
"""The modules of the extra `train` in pyproject.toml."""

HOW_TO_TRAIN = "pip install 'gliofed[train]'"


def what_is_missing(error: ModuleNotFoundError) -> str | None:
    """Return what to tell a user whose command needs the training packages; None: the module is none of them."""
    module = (error.name or "").partition(".")[0]
    if module not in TRAINING:
        return None
    return f"this command needs {module}, which this install of gliofed was made without: {HOW_TO_TRAIN}"
