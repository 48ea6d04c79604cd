"""From scans to what the trained tail reads: crops, views, frozen prefix, store.

The frozen prefix is 81 % of VGG19's forward work at 224 px, so each (image, view) passes it once and the result is
stored. Every prefix call has the same batch size, the last one padded: a batch of another size may be summed in
another order, and a feature must be the same bytes whoever computes it, today or after a crash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl.data.crops import AdmittedFile, CropBackend, smooth_crops
from fl.data.store import ArrayStore
from fl.model.speed import Execution
from fl.model.vgg import NetworkSettings, SplitVgg19, feature_shape
from fl.training.augment import View, apply_views
from kernels.ops import color
from kernels.spec import CROP_SIZE, PreprocessSpec

PREFIX_BATCH = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One image under one view."""

    path: Path
    pixels_sha256: str
    view: View

    @property
    def key(self) -> str:
        """Address of its features within a store's namespace."""
        return f"{self.pixels_sha256}|{astuple(self.view)}"


class FeatureSource:
    """Features of images under views, computed by one model's frozen prefix on one machine.

    cached: whether features are kept in the store; crops always are. Cached and uncached sources return the same
    bits, because both compute in batches of PREFIX_BATCH.
    """

    def __init__(
        self,
        model: SplitVgg19,
        *,
        network: NetworkSettings,
        execution: Execution,
        preprocess: PreprocessSpec,
        store_root: Path,
        cached: bool,
        crop_backend: CropBackend,
        num_threads: int,
    ) -> None:
        self._model = model
        self._execution = execution
        self._preprocess = preprocess
        self._crop_backend = crop_backend
        self._num_threads = num_threads
        self._crops = ArrayStore(store_root, f"smooth crop|{preprocess.semantics}", (CROP_SIZE, CROP_SIZE), np.uint8)
        self._store: ArrayStore | None = None
        if cached:
            channels, height, width = feature_shape(network, preprocess.size)
            dtype = np.uint16 if execution.dtype is torch.bfloat16 else np.float32
            namespace = f"features|{preprocess.digest()}|{prefix_digest(model, execution)}"
            self._store = ArrayStore(store_root, namespace, (height, width, channels), dtype)

    def features(self, requests: Sequence[Request]) -> Tensor:
        """Return features_NChw on the execution's device, bfloat16 or float32, read from the store where cached."""
        if self._store is None:
            rows = self._compute(requests)
        else:
            rows = self._store.get(
                [request.key for request in requests], lambda at: self._compute([requests[i] for i in at])
            )
        tensor = torch.from_numpy(rows)
        if tensor.dtype is torch.uint16:
            tensor = tensor.view(torch.bfloat16)
        return tensor.permute(0, 3, 1, 2).to(self._execution.device)

    def prepare(self, requests: Sequence[Request]) -> int:
        """Fill the store with what is missing; return how many features were computed."""
        if self._store is None:
            self.crops(requests)
            return 0
        absent = self._store.missing([request.key for request in requests])
        if absent:
            self.crops([requests[position] for position in absent])  # at once: a decoder's start-up is paid once
        for start in range(0, len(absent), PREFIX_BATCH):
            chosen = [requests[position] for position in absent[start : start + PREFIX_BATCH]]
            self._store.put([request.key for request in chosen], self._compute(chosen))
        return len(absent)

    def images(self, requests: Sequence[Request]) -> Tensor:
        """Return preprocessed images_NCHW float32 under their views, on the CPU."""
        images = torch.from_numpy(color(self.crops(requests), self._preprocess, num_threads=self._num_threads))
        return apply_views(images, [request.view for request in requests])

    def crops(self, requests: Sequence[Request]) -> NDArray[np.uint8]:
        """Return smooth crops_NHW uint8 (kernels.ops.denoise), decoding the files of those that the store lacks."""
        rows = self._crops.get(
            [request.pixels_sha256 for request in requests], lambda at: self._crop([requests[i] for i in at])
        )
        return rows.astype(np.uint8, copy=False)

    def _crop(self, requests: Sequence[Request]) -> NDArray[np.uint8]:
        files = [AdmittedFile(request.path, request.pixels_sha256) for request in requests]
        return np.concatenate(list(smooth_crops(files, self._crop_backend, num_threads=self._num_threads)))

    def _compute(self, requests: Sequence[Request]) -> NDArray[np.generic]:
        """Return rows [N, h, w, C], channels last because that is how the tail reads them."""
        pieces = [
            self._compute_batch(requests[start : start + PREFIX_BATCH])
            for start in range(0, len(requests), PREFIX_BATCH)
        ]
        return np.concatenate(pieces)

    @torch.no_grad()
    def _compute_batch(self, requests: Sequence[Request]) -> NDArray[np.generic]:
        padded = [*requests, *[requests[-1]] * (PREFIX_BATCH - len(requests))]
        images = self.images(padded).to(self._execution.device, memory_format=self._execution.memory_format)
        with self._execution.autocast():
            features_NChw = self._model.prefix(images).to(self._execution.dtype)
        rows = features_NChw.permute(0, 2, 3, 1)[: len(requests)].contiguous().cpu()
        result: NDArray[np.generic] = (rows.view(torch.uint16) if rows.dtype is torch.bfloat16 else rows).numpy()
        return result


def prefix_digest(model: SplitVgg19, execution: Execution) -> str:
    """Return a digest of everything that decides a feature's bits besides the image: weights and arithmetic."""
    digest = hashlib.sha256(f"{torch.__version__}|{execution}".encode())
    for name, parameter in model.prefix.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
