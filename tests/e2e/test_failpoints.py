"""A driver that dies at each named place of a job, one after the other, and the model that comes out in the end."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from fl.failpoint import VARIABLE

if TYPE_CHECKING:
    from tests.e2e.conftest import Finished, Launch, Workplace

PLACES = (
    "folder.written:1",  # the start's folder, under its temporary name
    "round.reply:2",  # two of round 1's four replies counted
    "round.aggregated:1",
    "folder.written:1",  # the checkpoint of round 1, whole but not in its place
    "round.scored:1",
    "folder.renamed:1",  # in its place, the ones before not pruned
    "round.reply:3",  # of round 2
    "job.trained:1",
    "job.exported:1",
)
"""In the order in which one run folder meets them; each run goes on from what the one before left."""


def test_a_driver_that_dies_at_every_place_resumes_to_the_same_bytes(
    workplace: Workplace, launch: Launch, reference: Finished
) -> None:
    folder, job = workplace.folder / "failpoints", workplace.job("tiny")

    for place in PLACES:
        command = launch("train", job, "--run-dir", folder, "--resume", environment={VARIABLE: place})
        assert command.wait() == -signal.SIGKILL, f"{place} was never reached:\n{command.output}{command.errors}"
        command.kill()

    run = launch("train", job, "--run-dir", folder, "--resume").finish(folder)
    assert run.weights == reference.weights
    arm, undisturbed = (one.result["arms"]["holdout"] for one in (run, reference))
    assert arm["test"] == undisturbed["test"], "a reply was counted twice or lost"
    assert [record["left_out"] for record in arm["history"]] == [[], [], []]
