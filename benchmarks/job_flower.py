"""The peer of `job_vs_flower`: the same client as one writes it today for Flower's own engine, with nothing of ours.

Torch and torchvision's VGG19 with a frozen prefix, a DataLoader over files that OpenCV decodes and the usual chain
preprocesses, FedAvg by `num-examples`. Done as well as is plain: only the trained arrays are sent, a worker builds its
network once, the frozen layers keep no graph, and as many sites train at once as there are cores.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import vgg19

from benchmarks.flower_engine import CompleteFedAvg, save_flat, simulate
from benchmarks.opencv_ways import chain
from kernels.spec import PreprocessSpec

FROZEN_LAYERS = 25
"""Of torchvision's VGG19: through the ReLU after block4_conv3."""

EVALUATION_BATCH = 64


class PlainNet(nn.Module):
    """VGG19's convolutions, global average pooling, dropout, a linear head."""

    def __init__(self, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.features = vgg19(weights=None, init_weights=False).features
        self.features[:FROZEN_LAYERS].requires_grad_(False)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(512, num_classes)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        with torch.no_grad():
            frozen = self.features[:FROZEN_LAYERS](images_NCHW)
        pooled_NC = self.features[FROZEN_LAYERS:](frozen).mean(dim=(2, 3))
        logits: Tensor = self.head(self.dropout(pooled_NC))
        return logits

    def trained(self) -> dict[str, Tensor]:
        """Return what is trained and sent, by name."""
        return {name: value.detach() for name, value in self.named_parameters() if value.requires_grad}


class Slices(Dataset[tuple[Tensor, int]]):
    """Files and labels; each file is read and preprocessed when it is asked for."""

    def __init__(self, pairs: Sequence[tuple[str, int]], spec: PreprocessSpec) -> None:
        self._pairs = pairs
        self._spec = spec

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self._pairs[index]
        return torch.from_numpy(chain(np.asarray(cv2.imread(path), np.uint8), self._spec)), label


def job(plain: str, tuned: bool, bfloat16: bool, result: str) -> dict[str, Any]:
    """Run the whole job; return its own accuracies and the seconds of its evaluations.

    plain: what `benchmarks.job_inputs` wrote. tuned: channels-last. bfloat16: autocast. result: .npy file for the last
    round's parameters.
    """
    settings = {**read_settings(plain), "plain": plain, "tuned": tuned, "bfloat16": bfloat16}
    validated: list[float] = []
    seconds: list[float] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        net = network(plain, tuned)

        def accuracy(arrays: ArrayRecord, pairs: Sequence[tuple[str, int]]) -> float:
            started = time.perf_counter()
            net.load_state_dict(arrays.to_torch_state_dict(), strict=False)
            found = accuracy_of(net, pairs, settings)
            seconds.append(time.perf_counter() - started)
            return found

        strategy = CompleteFedAvg(len(settings["sites"]))
        done = strategy.start(
            grid,
            ArrayRecord(net.trained()),
            num_rounds=settings["rounds"],
            evaluate_fn=lambda round, arrays: validated.append(accuracy(arrays, settings["validation"])),
        )
        validated.append(accuracy(done.arrays, settings["test"]))
        save_flat(done.arrays, result)

    simulate(server, _client(settings), len(settings["sites"]))
    return {"validation": validated[:-1], "test": validated[-1], "evaluation_seconds": sum(seconds)}


def _client(settings: dict[str, Any]) -> ClientApp:
    client = ClientApp()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        site = cast(int, context.node_config["partition-id"])
        round = cast(int, message.content.config_records["config"]["server-round"])
        net = network(settings["plain"], settings["tuned"])
        net.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict(), strict=False)
        torch.manual_seed(settings["seed"] + 1000 * round + site)
        loss = fit(net, settings["sites"][site], settings)
        metrics = MetricRecord({"num-examples": len(settings["sites"][site]), "loss": loss})
        return Message(RecordDict({"arrays": ArrayRecord(net.trained()), "metrics": metrics}), reply_to=message)

    return client


def fit(net: PlainNet, pairs: Sequence[tuple[str, int]], settings: dict[str, Any]) -> float:
    """Train with a fresh Adam; return the last epoch's mean loss."""
    loader = DataLoader(_slices(pairs, settings), batch_size=settings["batch_size"], shuffle=True)
    trained = [value for value in net.parameters() if value.requires_grad]
    optimizer, criterion = torch.optim.Adam(trained, lr=settings["learning_rate"]), nn.CrossEntropyLoss()
    total = 0.0
    net.train()
    for _ in range(settings["epochs"]):
        total = 0.0
        for images_NCHW, labels_N in loader:
            with _autocast(settings):
                logits_NK = net(_laid_out(images_NCHW, settings))
            loss = criterion(logits_NK.float(), labels_N)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels_N)
    return total / len(pairs)


@torch.no_grad()
def accuracy_of(net: PlainNet, pairs: Sequence[tuple[str, int]], settings: dict[str, Any]) -> float:
    """Return the part of the files that the network knows."""
    net.eval()
    hits = 0
    for images_NCHW, labels_N in DataLoader(_slices(pairs, settings), batch_size=EVALUATION_BATCH):
        with _autocast(settings):
            logits_NK = net(_laid_out(images_NCHW, settings))
        hits += int((logits_NK.argmax(dim=1) == labels_N).sum())
    return hits / len(pairs)


@cache
def network(plain: str, tuned: bool) -> PlainNet:
    """Return the process's one network, with the weights of the start."""
    settings = read_settings(plain)
    start = load_file(settings["start"])
    net = PlainNet(len(start["head.bias"]), settings["dropout"])
    names = [name for name in start if name.endswith(".weight") and "_conv" in name]
    names.sort(key=lambda name: name.split(".")[1])  # block1_conv1, block1_conv2, ...: the order of the network
    convolutions = [layer for layer in net.features if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        for name, layer in zip(names, convolutions, strict=True):
            assert layer.bias is not None
            layer.weight.copy_(start[name])
            layer.bias.copy_(start[name.replace(".weight", ".bias")])
        net.head.weight.copy_(start["head.weight"])
        net.head.bias.copy_(start["head.bias"])
    return net.to(memory_format=torch.channels_last) if tuned else net


def _slices(pairs: Sequence[tuple[str, int]], settings: dict[str, Any]) -> Slices:
    return Slices(pairs, PreprocessSpec.from_json(settings["preprocess"]))


def _laid_out(images_NCHW: Tensor, settings: dict[str, Any]) -> Tensor:
    return images_NCHW.contiguous(memory_format=torch.channels_last) if settings["tuned"] else images_NCHW


def _autocast(settings: dict[str, Any]) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16) if settings["bfloat16"] else nullcontext()


def read_settings(plain: str) -> dict[str, Any]:
    """Return what `benchmarks.job_inputs` wrote."""
    content: dict[str, Any] = json.loads(Path(plain).read_text(encoding="utf-8"))
    return content
