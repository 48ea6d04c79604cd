"""What gliofed needs of flwr's internals. A failure here says that flwr moved: read its message, then
fl/runtime/flower_internals.py."""

from __future__ import annotations

import inspect
import io
import re
from pathlib import Path
from typing import Any, get_args

import flwr
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from flwr.supercore.task_identity import TaskIdentity

from fl.runtime.client import ANSWERS
from fl.runtime.flower_internals import FLWR_VERSION, SharedArray, create_run, ensure_identity, set_message_id, view
from fl.runtime.grid import RayGrid
from fl.server.flower_options import OURS, StrategyName, WrapperName

MOVED = "flwr moved: "
ROOT = Path(__file__).parents[2]


def test_the_version_is_the_one_that_the_internals_are_of() -> None:
    assert flwr.__version__.startswith(f"{FLWR_VERSION}."), (
        f"{MOVED}{flwr.__version__} is installed, fl/runtime/flower_internals.py is of {FLWR_VERSION}; go through that "
        "file with the new version's source, then change FLWR_VERSION there"
    )


def test_internals_are_imported_in_their_one_file() -> None:
    public = {"flwr.app", "flwr.clientapp", "flwr.clientapp.mod", "flwr.serverapp", "flwr.serverapp.strategy"}
    for folder in ("fl/runtime", "fl/server", "fl/training", "service"):
        for path in sorted((ROOT / folder).glob("*.py")):
            if path.name == "flower_internals.py":
                continue
            imported = set(re.findall(r"^\s*(?:from|import) (flwr[\w.]*)", path.read_text(), re.MULTILINE))
            assert imported <= public, f"{path.name} imports {imported - public}: only flower_internals.py may"


def test_a_grid_has_the_methods_that_ours_implements() -> None:
    abstract = {
        "set_run",
        "run",
        "create_message",
        "get_node_ids",
        "push_messages",
        "pull_messages",
        "send_and_receive",
    }
    assert set(Grid.__abstractmethods__) == abstract, f"{MOVED}Grid has other abstract methods; change RayGrid"
    for name in abstract - {"run"}:
        theirs, ours = (inspect.signature(getattr(cls, name)).parameters for cls in (Grid, RayGrid))
        assert list(theirs) == list(ours), f"{MOVED}Grid.{name} takes {list(theirs)}"


def test_a_message_can_be_made_without_a_superlink() -> None:
    ensure_identity()
    assert TaskIdentity.node_id == SUPERLINK_NODE_ID
    message = Message(RecordDict(), dst_node_id=3, message_type="train")
    set_message_id(message, "a")

    reply = Message(RecordDict(), reply_to=message)

    assert message.metadata.message_id == "a", f"{MOVED}a message's identifier lies elsewhere"
    assert reply.metadata.reply_to_message_id == "a" and reply.metadata.src_node_id == 3
    assert create_run(5).run_id == 5


@pytest.mark.parametrize("message_type", ANSWERS)
def test_every_question_is_of_a_type_that_flower_sends(message_type: str) -> None:
    Message(RecordDict(), dst_node_id=1, message_type=message_type)


def test_a_shared_array_is_an_array_to_flower() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    shared, theirs = SharedArray(values), Array(values)

    assert isinstance(shared, Array), f"{MOVED}Array cannot be a base class"
    assert set(vars(theirs)) <= {"dtype", "shape", "stype", "data", "_is_dirty"}, f"{MOVED}Array has other fields"
    assert (shared.dtype, shared.shape, shared.stype) == (theirs.dtype, theirs.shape, theirs.stype)
    assert shared.object_id == theirs.object_id, f"{MOVED}an Array is written otherwise on the wire"
    record = ArrayRecord()
    record["a"] = shared
    (chunk,) = shared.children.values()
    inflated = Array.inflate(shared.deflate(), {chunk.object_id: chunk})
    assert np.array_equal(view(inflated), values) and np.array_equal(inflated.numpy(), values)
    assert np.array_equal(record.to_numpy_ndarrays()[0], values)


def test_arrays_are_npy_files() -> None:
    values = np.asfortranarray(np.arange(6.0).reshape(2, 3))

    assert np.array_equal(np.load(io.BytesIO(Array(values).data)), values), f"{MOVED}Array.data is no .npy file"
    assert np.array_equal(view(Array(values)), values)


@pytest.mark.parametrize("name", [*get_args(StrategyName), *get_args(WrapperName)])
def test_strategies_have_the_options_that_gliofed_knows_of(name: str) -> None:
    parameters = inspect.signature(getattr(flower, name)).parameters
    numbers = {option for option in parameters if option not in OURS}
    known = {
        "server_learning_rate", "server_momentum", "eta", "beta_1", "beta_2", "tau", "proximal_mu", "q", "beta",
        "client_learning_rate", "num_malicious_nodes", "num_nodes_to_select", "noise_multiplier", "clipping_norm",
        "initial_clipping_norm", "target_clipped_quantile", "clip_norm_lr", "clipped_count_stddev",
    }  # fmt: skip
    assert numbers <= known, f"{MOVED}{name} has new options {numbers - known}: for a job to set, or OURS?"


def test_adaptive_clipping_lowers_the_norm_when_updates_are_longer() -> None:
    """Against its paper (Andrew et al. 2019, section 2), where it then rises; fl/server/flower_options.py warns."""
    base: Any = flower.DifferentialPrivacyServerSideAdaptiveClipping(flower.FedAvg(), 0.0, 4, initial_clipping_norm=1.0)

    base._geometric_update(clipped_fraction=1.0)

    assert base.clipping_norm < 1, "flwr mended its adaptive clipping: drop the warnings in fl/server/flower_options.py"
