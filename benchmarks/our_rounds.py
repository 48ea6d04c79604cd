"""Rounds on the product's own path, marked one by one: round loop, Flower messages, Ray workers, exact mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from flwr.app import RecordDict

from benchmarks.marks import Marks
from fl.model.flat import FlatParameters
from fl.privacy.secagg.plan import SecureAggregationSettings
from fl.runtime.grid import RayGrid
from fl.runtime.pool import WorkerPool
from fl.runtime.secure import train_secure_round
from fl.runtime.sites import Limits, ask_named, train_sites
from fl.server.means import MeanStrategy
from fl.server.rounds import RoundSettings, Score, TrainSites, initial_state, run_rounds
from fl.training.exchange import Assignment, LeftOut, RoundTask, SecureMean
from fl.types import Site

SEED = 7
LIMITS = Limits(timeout_seconds=600.0)

Way = Callable[[RayGrid], TrainSites]
"""How a grid's sites are trained in a round."""


def marked_rounds(
    pool: WorkerPool, sites: Sequence[Site], parameters: FlatParameters, num_rounds: int, way: Way
) -> tuple[FlatParameters, Marks]:
    """Run rounds that every site has to answer, without validation; the first is for warming up and comes on top."""
    settings = RoundSettings(
        rounds=num_rounds + 1,
        participation=1.0,
        aggregation="by_examples",
        min_clients=len(sites),
        early_stop=None,
    )
    strategy, marks = MeanStrategy(aggregation=settings.aggregation), Marks()
    state = initial_state(parameters, strategy, _unscored)
    pool.describe()  # waits for the workers
    marks.take()
    for finished in run_rounds(
        state,
        sites=sites,
        settings=settings,
        strategy=strategy,
        seed=SEED,
        train=way(RayGrid(pool, sites)),
        evaluate=_unscored,
    ):
        state = finished
        marks.take()
    return state.parameters, marks


def plainly(grid: RayGrid) -> TrainSites:
    """Let each site send its parameters."""
    return lambda task, assignments: train_sites(grid, grid.nodes, task, assignments, LIMITS)


def securely(grid: RayGrid) -> TrainSites:
    """Let the server learn the sites' mean alone, under the settings' defaults."""

    def ask(
        contents: Mapping[str, RecordDict], message_type: str, timeout_seconds: float
    ) -> Iterator[tuple[str, RecordDict | LeftOut]]:
        return ask_named(grid, grid.nodes, message_type, contents, Limits(timeout_seconds=timeout_seconds))

    def train(task: RoundTask, assignments: Sequence[Assignment]) -> Iterable[SecureMean | LeftOut]:
        return train_secure_round(
            ask,
            task,
            assignments,
            SecureAggregationSettings(),
            by_examples=True,
            context=b"benchmark",
            timeout_seconds=LIMITS.timeout_seconds,
        )

    return train


def _unscored(parameters: FlatParameters) -> Score:
    return Score(accuracy=0.0, loss=0.0)
