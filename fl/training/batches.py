"""Which examples a training step sees: shuffled epochs, whole or walked through a few steps a round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl.random import stream


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """One step's examples: their positions [B] int64, and the epoch (counted over the whole job) that they are of."""

    positions: NDArray[np.int64]
    epoch: int


def whole_epochs(
    num_examples: int, batch_size: int, epochs: range, *, seed: int, address: Sequence[int | str]
) -> Iterator[Batch]:
    """Yield each epoch's examples in a fresh order, `batch_size` at a time; an epoch's last batch may be smaller."""
    for epoch in epochs:
        order = stream(seed, "order", *address, epoch).permutation(num_examples)
        for start in range(0, num_examples, batch_size):
            yield Batch(positions=order[start : start + batch_size], epoch=epoch)


def walked_steps(
    num_examples: int, batch_size: int, steps: range, *, seed: int, address: Sequence[int | str]
) -> Iterator[Batch]:
    """Yield the batches of some steps of an endless walk through shuffled epochs; a step depends on its number alone.

    Each epoch is dealt out in ceil(num_examples / batch_size) batches whose sizes differ by one at most, so that a
    single step of a round never rests on a leftover example, and every step lies in one epoch, which has one view.
    """
    steps_per_epoch = -(-num_examples // batch_size)
    for step in steps:
        epoch, turn = divmod(step, steps_per_epoch)
        order = stream(seed, "order", *address, epoch).permutation(num_examples)
        yield Batch(positions=np.array_split(order, steps_per_epoch)[turn], epoch=epoch)
