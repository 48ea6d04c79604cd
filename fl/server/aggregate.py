"""The weighted mean of sites' parameters, exact and in any order.

Replies arrive in any order and floating-point sums depend on it. Here every weighted value is rounded once to a
64-bit fixed-point number and summed in integers, so the sum is the same bytes for every order, can be resumed or
retried without a trace, and needs one accumulator however many sites reply.
"""

from __future__ import annotations

import math

import numpy as np

from fl.errors import UpdateRefused
from fl.model.flat import FlatParameters
from fl.training.encoding import EncodedDelta, decode, fault_in
from fl.training.exchange import Reply, RoundTask

FRACTION_BITS = 36
"""Resolution 2^-36 (1.5e-11): below half a float32 step of any parameter larger than 3e-4."""

MAX_MAGNITUDE = 4096.0
"""Parameters larger than this are refused; fewer than 2^(63-36) / 4096 = 32,768 sites are summed without overflow."""

_CHUNK = 1 << 20


class ExactMean:
    """Streaming weighted mean of flat parameters [P], weights in (0, 1]."""

    def __init__(self, num_parameters: int) -> None:
        self._sum = np.zeros(num_parameters, np.int64)
        self._weight = 0

    def add(self, parameters: FlatParameters, weight: float) -> None:
        """Add one site's parameters. The array is not kept."""
        if not 0 < weight <= 1:
            raise ValueError(f"weight is {weight}, expected 0 < weight <= 1")
        quanta = round(weight * 2**FRACTION_BITS)  # of both sums, so that equal parameters have themselves as mean
        for start in range(0, len(parameters), _CHUNK):
            scaled = parameters[start : start + _CHUNK].astype(np.float64)
            scaled *= float(quanta)
            self._sum[start : start + _CHUNK] += np.rint(scaled, out=scaled).astype(np.int64)
        self._weight += quanta

    def result(self) -> FlatParameters:
        """Return the mean in float32. Raises ValueError where nothing was added."""
        if self._weight == 0:
            raise ValueError("mean of no parameters; add at least one reply")
        mean = np.empty(len(self._sum), np.float32)
        for start in range(0, len(mean), _CHUNK):
            mean[start : start + _CHUNK] = self._sum[start : start + _CHUNK] / self._weight
        return mean


def decode_reply(reply: Reply, task: RoundTask) -> FlatParameters:
    """Return the parameters [P] of a reply to the task; raise UpdateRefused, naming the site, unless they are usable.

    Usable: of this round, of the task's shape and encoding, finite, of a magnitude that a trained parameter can have,
    and from at least one example.
    """
    if reply.round != task.round:
        raise UpdateRefused(reply.site, f"it answers round {reply.round}, this is round {task.round}")
    if reply.summary.num_examples < 1:
        raise UpdateRefused(reply.site, f"it trained on {reply.summary.num_examples} examples")
    num_parameters = len(task.parameters)
    fault = fault_in(reply.update, task.encoding, num_parameters)
    if fault is not None:
        raise UpdateRefused(reply.site, f"its {fault}")
    for name, array in reply.extra.items():
        if array.dtype != np.float32 or array.shape != (num_parameters,):
            raise UpdateRefused(
                reply.site, f"its {name} is {array.dtype}{list(array.shape)}, expected float32[{num_parameters}]"
            )
        require_magnitude(reply.site, name, array)
    if isinstance(reply.update, EncodedDelta):
        require_magnitude(reply.site, "update", reply.update.scales)
    parameters = decode(reply.update, task.parameters)
    require_magnitude(reply.site, "update", parameters)
    return parameters


def require_magnitude(site: str, name: str, array: FlatParameters) -> None:
    """Raise UpdateRefused where a value is NaN, infinite or larger than MAX_MAGNITUDE."""
    largest = _largest_magnitude(array)
    if not np.isfinite(largest):
        raise UpdateRefused(site, f"its {name} contains NaN or infinity; look at its data and learning rate")
    if largest > MAX_MAGNITUDE:
        raise UpdateRefused(site, f"its {name} has a value of magnitude {largest:.3g}, the limit is {MAX_MAGNITUDE:g}")


def _largest_magnitude(parameters: FlatParameters) -> float:
    if not len(parameters):
        return 0.0
    # max and min propagate NaN, and need no temporary array
    return float(np.maximum(np.max(parameters), -np.min(parameters)))


def distance(left: FlatParameters, right: FlatParameters) -> float:
    """Return the L2 distance of two flat arrays, summed in float64 chunk by chunk."""
    total = 0.0
    for start in range(0, len(left), _CHUNK):
        difference = left[start : start + _CHUNK] - right[start : start + _CHUNK]
        total += float(np.dot(difference, difference))
    return math.sqrt(total)
