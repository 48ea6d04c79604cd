"""One class a site and nothing shared, as real jobs: closed form, rounds, masks, a crash, and what each site gains."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from fl.failpoint import VARIABLE
from fl.model.vgg import NetworkSettings, SplitVgg19, initialise_from_nothing

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import Finished, Launch, Workplace

WIDTH = 0.125


def settings(weights: Path) -> dict[str, Any]:
    return {
        "name": "zero",
        "scenario": "noniid_zero_share",
        "data": {"source": "folder", "partition": {"kind": "one_class", "sites_per_class": 1}},
        "preprocess": {"size": 64},
        "model": {
            "network": {"width": WIDTH, "random_features": 64},
            "weights": {"source": "file", "path": str(weights), "normalization": "caffe"},
            "speed": {"precision": "float32"},
        },
        "fl": {
            "rounds": 2,
            "local": {"batch_size": 8},
            "augment": {"views": 1},
            "personal": {"epochs": 2},
            "encoding": "int8",
        },
        "ray": {"workers": 2, "threads": 1},
    }


@pytest.fixture(scope="module")
def job(workplace: Workplace) -> Path:
    model = SplitVgg19(NetworkSettings(width=WIDTH))
    initialise_from_nothing(model, torch.Generator().manual_seed(1))
    weights = workplace.folder / "zero-weights.safetensors"
    layers = {name.partition(".")[2]: value.detach() for name, value in model.features().named_parameters(prefix="x")}
    save_file(layers, weights)
    return workplace.job("zero", settings(weights))


@pytest.fixture(scope="module")
def plain(workplace: Workplace, launch: Launch, job: Path) -> Finished:
    folder = workplace.folder / "zero"
    return launch("train", job, "--run-dir", folder).finish(folder)


@pytest.fixture(scope="module")
def masked(workplace: Workplace, launch: Launch, job: Path) -> Finished:
    """The same job under secure aggregation, its driver killed between and after phases of secure rounds."""
    folder = workplace.folder / "zero-masked"
    command = ("train", job, "--run-dir", folder, "--resume", "--set", "fl.secure_aggregation={}")
    command = (*command, "--set", "fl.encoding=float32")
    for place in ("secure.masked:1", "analytic.sums:1", "secure.unmasked:1", "round.aggregated:2"):
        died = launch(*command, environment={VARIABLE: place})
        assert died.wait() == -signal.SIGKILL, died.output + died.errors
        died.kill()
    return launch(*command).finish(folder)


def test_the_closed_form_and_what_each_site_gains_are_reported(plain: Finished) -> None:
    arm = plain.result["arms"]["noniid_zero_share"]
    assert arm["analytic"]["num_sites"] == 4 and arm["analytic"]["bytes_up_per_site"] > 0
    assert arm["analytic"]["validation_accuracy"] == arm["start_validation_accuracy"] > 0.5
    assert [row["num_examples"] for row in arm["personal"]] == [8] * 4
    assert arm["strategy"] == "muon, uniform"
    page = (plain.folder / "report.html").read_text()
    assert "What the model is worth to each site" in page and "closed-form head" in page


def test_int8_updates_are_a_quarter_and_sites_keep_what_they_left_out(plain: Finished) -> None:
    arm = plain.result["arms"]["noniid_zero_share"]
    for record in arm["history"]:
        assert record["bytes_up"] / record["bytes_down"] == pytest.approx(0.25, rel=0.02)
    kept = sorted(path.name for path in plain.folder.glob("sites/*/*.safetensors"))
    assert kept.count("round-0002.safetensors") == 4


def test_masked_sums_give_the_head_of_plain_sums_to_the_byte(plain: Finished, masked: Finished) -> None:
    heads = [load_file(run.folder / "analytic" / "model.safetensors")["parameters"] for run in (plain, masked)]
    assert heads[0].tobytes() == heads[1].tobytes()


def test_a_masked_job_that_was_killed_counts_every_site_once_and_keeps_no_secret(masked: Finished) -> None:
    assert not list(masked.folder.glob("sites/*/secure-round"))
    history = masked.result["arms"]["noniid_zero_share"]["history"]
    assert [record["left_out"] for record in history] == [[], []]
    sites = [site for record in history for site in record["sites"]]
    assert len(sites) == 8


def test_the_bundles_maps_add_up_to_its_scores(plain: Finished, launch: Launch, workplace: Workplace) -> None:
    command = launch("predict", "--bundle", plain.folder / "bundle", plain.folder / "samples" / "00.png")
    assert command.wait() == 0, command.errors
    assert json.loads(command.output)
