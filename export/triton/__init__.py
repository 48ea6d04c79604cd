"""A bundle as a model repository for NVIDIA's Triton Inference Server, to copy beside a server and start."""

from export.triton.repository import write_triton_repository
from export.triton.settings import TritonSettings

__all__ = ["TritonSettings", "write_triton_repository"]
