"""A tiny federation from files to confusion matrix: the same figures everywhere, the same bytes on one machine.

tests/golden/tiny.json holds the figures. After a change that is meant to alter them, write them anew with
`python tests/golden/test_tiny_federation.py` and say why in the commit.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fl.data.admission import AdmissionSettings
from fl.data.federation import DataSettings, Federation, SharedSettings, build_federation
from fl.data.intake import admit_sets, list_sets, sort_outcomes
from fl.evaluation.metrics import evaluate, evaluate_paired
from fl.model.flat import gather
from fl.model.speed import SpeedSettings
from fl.model.vgg import NetworkSettings, SplitVgg19
from fl.model.weights import WeightSettings, load_weights
from fl.server.checkpoint import load_checkpoint, save_checkpoint
from fl.server.means import MeanStrategy
from fl.server.rounds import FederationState, RoundSettings, Score, initial_state, run_rounds
from fl.training.augment import AugmentSettings
from fl.training.exchange import Assignment, Reply, RoundTask
from fl.training.local import LocalSettings
from fl.training.trainer import ModelState, SiteTrainer, TrainerSetup, model_state
from fl.training.warmup import WarmupSettings
from fl.types import CLASSES, Scan
from kernels.spec import PreprocessSpec

GOLDEN = Path(__file__).with_name("tiny.json")
SEED = 7
NETWORK = NetworkSettings(width=0.125)
WEIGHTS = WeightSettings(source="random")
ROUNDS = RoundSettings(
    rounds=2, participation=0.67, sampling="stratified", aggregation="class_balanced", early_stop=None
)
WARMUP = WarmupSettings(
    epochs=8, batch_size=8, learning_rate=2e-3, schedule="one_cycle", weight_decay=0.01, layers="all"
)
DISCS = {0: (48, 26), 1: (48, 48), 2: None, 3: (48, 70)}
"""Where each class has its bright disc, told apart by height because views are mirrored; no tumour, no disc."""


def draw(random: np.random.Generator, label: int) -> NDArray[np.uint8]:
    """A grey head in noise, with the disc of its class a little moved."""
    gray_HW = random.integers(0, 25, (96, 96)).astype(np.uint8)
    cv2.ellipse(gray_HW, (48, 48), (44, 40), int(random.integers(0, 180)), 0, 360, int(random.integers(80, 110)), -1)
    centre = DISCS[label]
    if centre is not None:
        right, down = random.integers(-4, 5, 2)
        cv2.circle(gray_HW, (centre[0] + int(right), centre[1] + int(down)), 11, int(random.integers(200, 256)), -1)
    return gray_HW


def write_folder(root: Path) -> None:
    """Kaggle's layout with generated pictures; PNG, so that no JPEG encoder has a say."""
    random = np.random.default_rng(SEED)
    for name, per_class in (("Training", 24), ("Testing", 10), ("Synthetic", 12)):
        for label, class_name in enumerate(CLASSES):
            folder = root / name / class_name
            folder.mkdir(parents=True)
            for index in range(per_class):
                assert cv2.imwrite(str(folder / f"{index:03d}.png"), draw(random, label))
    (root / "Training" / "glioma" / "broken.png").write_bytes(b"\x89PNG\r\n")
    for index in range(3):  # known to be wrong, so that the confusion matrix is no diagonal
        assert cv2.imwrite(str(root / "Testing" / "glioma" / f"wrong{index}.png"), draw(random, label=3))
    for index in range(5):
        copy = (root / "Training" / "notumor" / f"{index:03d}.png").read_bytes()
        (root / "Testing" / "notumor" / f"copy{index}.png").write_bytes(copy)


def gather_data(root: Path) -> Federation:
    data = DataSettings.model_validate(
        {"root": root, "partition": {"kind": "one_class", "sites_per_class": 3}, "validation_fraction": 0.2}
    )
    outcomes = list(admit_sets(list_sets(root, None), AdmissionSettings(num_threads=1), root / "inventory.jsonl"))
    return build_federation(sort_outcomes(outcomes), data, SharedSettings(source="synthetic"), seed=SEED)


def make_trainer(state: ModelState, store_root: Path) -> SiteTrainer:
    return SiteTrainer(
        TrainerSetup(
            network=NETWORK,
            speed=SpeedSettings(precision="float32", compile="off"),
            preprocess=PreprocessSpec(size=64, normalization=WEIGHTS.input_normalization()),
            augment=AugmentSettings(views=2),
            local=LocalSettings(epochs=1, batch_size=8, learning_rate=3e-4),
            store_root=store_root,
            crop_backend="auto",
            seed=SEED,
            num_threads=1,
            state=state,
        )
    )


def start_model(federation: Federation, store_root: Path) -> ModelState:
    model = SplitVgg19(NETWORK)
    load_weights(model, WEIGHTS, seed=SEED)
    state, _ = make_trainer(model_state(model), store_root).warm_up(federation.shared_scans, WARMUP)
    return state


def logits_of(trainer: SiteTrainer, parameters: NDArray[np.float32], scans: Sequence[Scan]) -> tuple[Any, Any]:
    return np.array([scan.label for scan in scans]), trainer.evaluate(parameters, scans)


def run_federation(federation: Federation, start: ModelState, trainer: SiteTrainer, root: Path) -> FederationState:
    """Run the rounds, checkpoint after each, and go on from the file each time, as a job that is killed often does."""

    def train(task: RoundTask, assignments: Sequence[Assignment]) -> Iterator[Reply]:
        return (trainer.train(task, one.site, one.state_round) for one in reversed(assignments))

    def score(parameters: NDArray[np.float32]) -> Score:
        metrics = evaluate(*logits_of(trainer, parameters, federation.validation_scans), CLASSES)
        assert metrics.loss is not None
        return Score(accuracy=metrics.accuracy, loss=metrics.loss)

    strategy = MeanStrategy(aggregation=ROUNDS.aggregation)
    model = SplitVgg19(NETWORK)
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in start.items()})
    state: FederationState | None = initial_state(gather(model.trained_parameters()), strategy, score)
    for _ in range(ROUNDS.rounds):
        assert state is not None
        rounds = run_rounds(
            state,
            sites=federation.sites,
            settings=ROUNDS,
            strategy=strategy,
            seed=SEED,
            train=train,
            evaluate=score,
        )
        state = next(rounds)
        save_checkpoint(root, state, job_digest="job")
        state = load_checkpoint(root, job_digest="job")
    assert state is not None
    return state


def journey(root: Path) -> tuple[dict[str, Any], str]:
    """Return the figures, and a digest of all weights that came out."""
    write_folder(root / "data")
    federation = gather_data(root / "data")
    start = start_model(federation, root / "store")
    trainer = make_trainer(start, root / "store")
    state = run_federation(federation, start, trainer, root / "checkpoints")
    labels_T, logits_TK = logits_of(trainer, state.parameters, federation.test_scans)
    test = evaluate_paired(labels_T, logits_TK, federation.near_copies_T, CLASSES)
    figures = {
        "num_sites": len(federation.sites),
        "num_scans": {
            "training": len(federation.training_scans),
            "validation": len(federation.validation_scans),
            "shared": len(federation.shared_scans),
            "test": len(federation.test_scans),
            "quarantined": [item.reason for item in federation.quarantined],
        },
        "participants": [[site.site for site in record.sites] for record in state.history],
        "start_validation_accuracy": state.start_score.accuracy,
        "validation_accuracies": [record.validation_accuracy for record in state.history],
        "best_round": state.best_round,
        "exact_copies": int(federation.exact_copies_T.sum()),
        "near_copies": test.num_near_duplicates,
        "test_accuracy": test.as_published.accuracy,
        "test_accuracy_deduplicated": test.deduplicated.accuracy,
        "test_confusion": test.as_published.to_json()["confusion"],
    }
    digest = hashlib.sha256(state.parameters.tobytes() + state.best_parameters.tobytes())
    for name in sorted(start):
        digest.update(start[name].tobytes())
    return figures, digest.hexdigest()


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    return journey(tmp_path_factory.mktemp("first"))


def test_figures_are_the_golden_ones(first: tuple[dict[str, Any], str]) -> None:
    assert first[0] == json.loads(GOLDEN.read_text())


def test_the_tiny_federation_learns_what_it_is_shown(first: tuple[dict[str, Any], str]) -> None:
    assert first[0]["test_accuracy"] >= 0.8, "figures of a model at chance would not notice a fault"


def test_second_run_gives_the_same_bytes(first: tuple[dict[str, Any], str], tmp_path: Path) -> None:
    assert journey(tmp_path) == first


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        found, _ = journey(Path(folder))
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(GOLDEN.read_text())
