"""An engine run on the GPU: images in host memory in, every output in host memory out. Memory is torch's."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.card import INPUT_NAME
from export.errors import EngineError
from export.tensorrt import api


class Runner:
    """An engine of ours on the current GPU. Not for several threads at once: it has one execution context."""

    def __init__(self, trt: Any, plan: bytes) -> None:
        """Load a plan that `require_belongs` let pass. Raises EngineError where TensorRT refuses it."""
        self._trt, self._texts = trt, list[str]()
        self._logger = api.collecting_logger(trt, self._texts)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(f"TensorRT {trt.__version__} does not load the engine: {'; '.join(self._texts)}")
        self._context = self._engine.create_execution_context()
        self._names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]

    def run(self, images_NCHW: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return every output for a batch, float32. Raises EngineError for a batch outside the engine's range."""
        images = torch.from_numpy(np.ascontiguousarray(images_NCHW)).cuda()
        if not self._context.set_input_shape(INPUT_NAME, tuple(images.shape)):
            smallest, _, largest = self._engine.get_tensor_profile_shape(INPUT_NAME, 0)
            raise EngineError(
                f"images are {tuple(images.shape)}; the engine takes {tuple(smallest)} to {tuple(largest)}"
            )
        held = {INPUT_NAME: images}
        for name in self._names:
            if name != INPUT_NAME:
                held[name] = torch.empty(tuple(self._context.get_tensor_shape(name)), device="cuda")
            self._context.set_tensor_address(name, held[name].data_ptr())
        stream = torch.cuda.current_stream()
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise EngineError(f"the engine failed: {'; '.join(self._texts) or 'TensorRT gives no reason'}")
        stream.synchronize()
        return {name: held[name].cpu().numpy() for name in self._names if name != INPUT_NAME}

    def layers(self) -> dict[str, int]:
        """Return how many layers of each kind are left after fusion, as TensorRT's inspector names them."""
        inspector = self._engine.create_engine_inspector()
        told = json.loads(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))
        kinds = Counter(
            layer.get("LayerType", "unnamed") if isinstance(layer, dict) else "unnamed" for layer in told["Layers"]
        )
        return dict(sorted(kinds.items()))
