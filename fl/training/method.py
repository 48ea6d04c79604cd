"""What a round's method asks of a site besides training: corrections, further arrays, and what to remember.

A task shows its method by what it carries: `control` is SCAFFOLD's, `proximal-mu` FedProx's, and an encoding other than
float32 has error feedback. Nothing else has a memory at the site.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from fl.errors import GliofedError
from fl.model.flat import FlatParameters
from fl.training.corrections import CONTROL, CONTROL_DELTA, PROXIMAL_MU, constant, control_delta, proximal
from fl.training.encoding import RESIDUAL, encode
from fl.training.exchange import Reply, RoundTask
from fl.training.local import Correction, LocalSettings, TrainingSummary

Memory = Mapping[str, FlatParameters]
"""Arrays [P] by name."""


def require_known(task: RoundTask, local: LocalSettings) -> None:
    """Raise GliofedError where the task asks for what this version or these settings cannot give."""
    unknown = set(task.broadcast) - {CONTROL}
    if unknown:
        raise GliofedError(
            f"round {task.round} sends {', '.join(sorted(unknown))}, which this version does not know; run the same "
            "version at the server and the sites"
        )
    if CONTROL in task.broadcast and local.optimizer != "sgd":
        raise GliofedError(
            f"round {task.round} is scaffold's, whose control variates are mean gradients, but fl.local.optimizer is "
            f"`{local.optimizer}`; set it to sgd"
        )


def remembered(task: RoundTask) -> list[str]:
    """Return the names of the arrays that a site goes on from in this task."""
    control = [CONTROL] if CONTROL in task.broadcast else []
    return control + ([RESIDUAL] if task.encoding != "float32" else [])


def corrections_of(task: RoundTask, memory: Memory, parameters: Sequence[nn.Parameter]) -> list[Correction]:
    """Return what the task adds to the gradients of parameters that hold the task's values."""
    corrections = []
    if CONTROL in task.broadcast:
        corrections.append(constant(parameters, task.broadcast[CONTROL] - memory[CONTROL]))
    if mu := float(task.config.get(PROXIMAL_MU, 0.0)):
        corrections.append(proximal(parameters, mu))
    return corrections


def answer(
    task: RoundTask,
    memory: Memory,
    local: LocalSettings,
    *,
    site: str,
    trained: FlatParameters,
    summary: TrainingSummary,
) -> tuple[Reply, Memory]:
    """Return the reply to a task with the trained parameters [P], and what the site is to remember; empty: nothing."""
    update, left_out = encode(trained, task.parameters, task.encoding, memory.get(RESIDUAL))
    kept = {} if left_out is None else {RESIDUAL: left_out}
    extra = {}
    if CONTROL in task.broadcast:
        steps = local.effective_steps(summary.num_steps)
        extra[CONTROL_DELTA] = control_delta(
            task.broadcast[CONTROL], task.parameters, trained, learning_rate=local.learning_rate, steps=steps
        )
        kept[CONTROL] = memory[CONTROL] + extra[CONTROL_DELTA]
    return Reply(site=site, round=task.round, update=update, summary=summary, extra=extra), kept
