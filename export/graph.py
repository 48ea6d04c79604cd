"""An ONNX graph while it is being written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.card import INPUT_NAME


@dataclass(kw_only=True, slots=True)
class Graph:
    """Nodes and weights so far. tensor: the value that the next layer reads; size: the side of its maps.

    sides: the side of each value's maps that a layer wrote.
    """

    size: int
    tensor: str = INPUT_NAME
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[TensorProto] = field(default_factory=list)
    sides: dict[str, int] = field(default_factory=dict)

    def add(self, op: str, name: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        """Add a layer, whose output the next layer reads."""
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name, **attributes))
        self.tensor = output
        self.sides[output] = self.size

    def node(self, op: str, name: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node beside the layers and return its output's name."""
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def split(self, name: str, tensor: str, sizes: str, *, num_outputs: int, axis: int) -> list[str]:
        """Add a node that cuts a value along an axis; return its outputs' names."""
        outputs = [f"{name}.out{index}" for index in range(num_outputs)]
        self.nodes.append(helper.make_node("Split", [tensor, sizes], outputs, name=name, axis=axis))
        return outputs

    def as_float(self, name: str, mask: str) -> str:
        """Add a cast of a mask to 0.0 and 1.0; return its output's name."""
        return self.node("Cast", f"{name}.float", [mask], to=TensorProto.FLOAT)

    def weigh(self, name: str, values: torch.Tensor) -> str:
        """Store a weight and return its name."""
        return self.constant(name, values.detach().cpu().numpy())

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """Store an array and return its name."""
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name
