"""Flower's side of `round_overhead_vs_flower`: its own Ray engine, its FedAvg, sites that return what they got."""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from benchmarks.flower_engine import CompleteFedAvg, save_flat, simulate
from benchmarks.marks import Marks
from benchmarks.round_ours import NUM_EXAMPLES


def overhead(parameters: str, num_sites: int, num_rounds: int, *, result: str) -> dict[str, Any]:
    """As `benchmarks.round_ours.overhead`; parameters: .npz file of the model's named arrays."""
    marks = Marks()
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        with np.load(parameters) as arrays:
            named = ArrayRecord({name: Array(arrays[name]) for name in arrays.files})
        done = CompleteFedAvg(num_sites).start(
            grid, named, num_rounds=num_rounds + 1, evaluate_fn=lambda round, arrays: marks.take()
        )
        save_flat(done.arrays, result)

    simulate(server, _copying_client(), num_sites)
    return marks.to_json()


def _copying_client() -> ClientApp:
    client = ClientApp()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        received = message.content.array_records["arrays"]
        # reading an array from its record makes the copy
        arrays = ArrayRecord({name: Array(array.numpy()) for name, array in received.items()})
        metrics = MetricRecord({"num-examples": NUM_EXAMPLES})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return client
