"""Flower's own simulation engine on Ray, as its users start it; what both of its programs here share."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.family import NUM_CORES

OBJECT_STORE_BYTES = 4 * 2**30
"""More than the engine needs here; with too little Ray would write to disk."""


class CompleteFedAvg(FedAvg):
    """FedAvg over every site in every round, which stops where a site fails instead of going on without it."""

    def __init__(self, num_sites: int) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=num_sites, min_available_nodes=num_sites)
        self._num_sites = num_sites

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average as FedAvg does. Raises RuntimeError unless every site answered."""
        replies = list(replies)
        faults = [reply.error.reason for reply in replies if reply.has_error()]
        if faults or len(replies) != self._num_sites:
            raise RuntimeError(
                f"round {server_round}: {len(replies)} of {self._num_sites} sites answered, errors: {faults}"
            )
        return super().aggregate_train(server_round, replies)


def simulate(server: ServerApp, client: ClientApp, num_sites: int) -> None:
    """Run the apps with one core a site's training, so that as many sites train at once as there are cores."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    run_simulation(
        server,
        client,
        num_supernodes=num_sites,
        backend_config={
            "init_args": {"num_cpus": NUM_CORES, "num_gpus": 0, "object_store_memory": OBJECT_STORE_BYTES},
            "client_resources": {"num_cpus": 1.0, "num_gpus": 0.0},
        },
    )


def save_flat(arrays: ArrayRecord, path: str) -> None:
    """Write the arrays one after another as .npy, float32 [P]: our order where the names were sent in it."""
    np.save(path, np.concatenate([array.numpy().astype(np.float32).ravel() for array in arrays.values()]))
