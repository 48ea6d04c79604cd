"""One model on one machine, serving any site: prepare, warm up, train, evaluate.

Nothing here knows Ray; `fl.runtime` puts a `SiteTrainer` into an actor. A trainer keeps no state of a site between
calls: each call names its site, round and global parameters, so any worker can serve any site, and a call that is
repeated after a crash gives the same bytes.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl.data.crops import CropBackendSetting, resolve_backend
from fl.model.features import FeatureSource, Request
from fl.model.flat import FlatParameters, gather, scatter
from fl.model.speed import SpeedSettings, place, resolve_execution
from fl.model.vgg import NetworkSettings, SplitVgg19
from fl.training.augment import IDENTITY, AugmentSettings, draw_view
from fl.training.local import LocalSettings, Schedule, TrainingSummary, predict, train
from fl.training.warmup import WarmupSettings
from fl.types import Scan, Site
from kernels.decode import DECODER
from kernels.dispatch import isa
from kernels.spec import PreprocessSpec

ModelState = dict[str, NDArray[np.float32]]
"""Every weight of a `SplitVgg19` under its torch name."""

EVALUATION_BATCH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerSetup:
    """All that a trainer is made of; the same setup on the same kind of machine gives the same bytes."""

    network: NetworkSettings
    speed: SpeedSettings
    preprocess: PreprocessSpec
    augment: AugmentSettings
    local: LocalSettings
    store_root: Path
    crop_backend: CropBackendSetting
    seed: int
    num_threads: int
    state: ModelState


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a site returns from a round: its parameters and what it says about them."""

    site: str
    round: int
    parameters: FlatParameters
    summary: TrainingSummary


class SiteTrainer:
    """A model with its features, ready for calls. See the module's docstring."""

    def __init__(self, setup: TrainerSetup) -> None:
        torch.set_num_threads(setup.num_threads)
        self._setup = setup
        self._execution = resolve_execution(setup.speed)
        self._crop_backend = resolve_backend(setup.crop_backend)
        self._model = SplitVgg19(setup.network)
        self._load_start()
        place(self._model, self._execution)
        self._training_features = self._features(cached=setup.augment.views > 0 or setup.augment.is_identity)
        self._evaluation_features = self._features(cached=True)

    def describe(self) -> dict[str, str]:
        """Return how this trainer computes, for the report."""
        execution = self._execution
        return {
            "device": torch.cuda.get_device_name() if execution.device.type == "cuda" else "cpu",
            "precision": str(execution.dtype).removeprefix("torch."),
            "compiled": str(execution.compiled),
            "threads": str(torch.get_num_threads()),
            "preprocessing": f"{self._crop_backend}, {isa()}",
            "decoder": DECODER,
        }

    def prepare(self, scans: Sequence[Scan], views: Sequence[int] | None) -> int:
        """Compute and store what training (views) or evaluation (None) will read; return how much was computed."""
        source = self._evaluation_features if views is None else self._training_features
        requests = [self._request(scan, view) for scan in scans for view in (views if views is not None else (None,))]
        return source.prepare(requests)

    def train(self, round: int, site: Site, parameters: FlatParameters) -> Reply:
        """Run the site's local epochs of one round from the global parameters. round counts from 1."""
        local = self._setup.local
        scatter(parameters, self._model.trained_parameters())
        scans = [*site.scans, *site.shared_scans]
        summary = train(
            self._model,
            self._model.classify,
            lambda chosen, epoch: self._training_batch(scans, chosen, epoch),
            [scan.label for scan in scans],
            Schedule(
                epochs=local.epochs,
                batch_size=local.batch_size,
                learning_rate=local.learning_rate,
                first_epoch=(round - 1) * local.epochs,
            ),
            parameters=[parameter for _, parameter in self._model.trained_parameters()],
            execution=self._execution,
            seed=self._setup.seed,
            address=("round", round, site.name),
        )
        return Reply(site=site.name, round=round, parameters=gather(self._model.trained_parameters()), summary=summary)

    def evaluate(self, parameters: FlatParameters, scans: Sequence[Scan]) -> NDArray[np.float32]:
        """Return logits_NK of the scans under the given parameters."""
        scatter(parameters, self._model.trained_parameters())
        requests = [self._request(scan, None) for scan in scans]
        return predict(
            self._model,
            self._model.classify,
            lambda chosen, _: self._evaluation_features.features([requests[i] for i in chosen]),
            len(scans),
            batch_size=EVALUATION_BATCH,
            execution=self._execution,
        )

    def warm_up(self, scans: Sequence[Scan], settings: WarmupSettings) -> tuple[ModelState, TrainingSummary]:
        """Train on the shared scans from the setup's state and return the whole model's new state.

        Features that this trainer reads afterwards would be the old prefix's: make a new trainer from the state.
        """
        self._load_start()
        summary = (
            self._warm_up_all(scans, settings) if settings.layers == "all" else self._warm_up_tail(scans, settings)
        )
        return model_state(self._model), summary

    def peak_memory_bytes(self) -> int:
        """Return the most resident memory that this process has had."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _load_start(self) -> None:
        load_model_state(self._model, self._setup.state)

    def _features(self, *, cached: bool) -> FeatureSource:
        setup = self._setup
        return FeatureSource(
            self._model,
            network=setup.network,
            execution=self._execution,
            preprocess=setup.preprocess,
            store_root=setup.store_root,
            cached=cached,
            crop_backend=self._crop_backend,
            num_threads=setup.num_threads,
        )

    def _request(self, scan: Scan, view: int | None) -> Request:
        drawn = IDENTITY
        if view is not None:
            drawn = draw_view(self._setup.augment, seed=self._setup.seed, image_key=scan.pixels_sha256, view=view)
        return Request(path=scan.path, pixels_sha256=scan.pixels_sha256, view=drawn)

    def _requests(self, scans: Sequence[Scan], chosen: NDArray[np.int64], epoch: int) -> list[Request]:
        view = self._setup.augment.view_of_epoch(epoch)
        return [self._request(scans[i], view) for i in chosen]

    def _training_batch(self, scans: Sequence[Scan], chosen: NDArray[np.int64], epoch: int) -> Tensor:
        return self._training_features.features(self._requests(scans, chosen, epoch))

    def _warm_up_tail(self, scans: Sequence[Scan], settings: WarmupSettings) -> TrainingSummary:
        return train(
            self._model,
            self._model.classify,
            lambda chosen, epoch: self._training_batch(scans, chosen, epoch),
            [scan.label for scan in scans],
            settings.as_schedule(),
            parameters=[parameter for _, parameter in self._model.trained_parameters()],
            execution=self._execution,
            seed=self._setup.seed,
            address=("warm-up",),
        )

    def _warm_up_all(self, scans: Sequence[Scan], settings: WarmupSettings) -> TrainingSummary:
        self._model.requires_grad_(True)
        try:
            return train(
                self._model,
                self._model,
                lambda chosen, epoch: self._image_batch(scans, chosen, epoch),
                [scan.label for scan in scans],
                settings.as_schedule(),
                parameters=list(self._model.parameters()),
                execution=self._execution,
                seed=self._setup.seed,
                address=("warm-up",),
            )
        finally:
            self._model.prefix.requires_grad_(False)

    def _image_batch(self, scans: Sequence[Scan], chosen: NDArray[np.int64], epoch: int) -> Tensor:
        # every epoch a fresh view: nothing of these images is stored, so nothing is saved by repeating a view
        images = self._training_features.images([self._request(scans[i], epoch) for i in chosen])
        return images.to(self._execution.device, memory_format=self._execution.memory_format)


def load_model_state(model: SplitVgg19, state: ModelState) -> None:
    """Copy the weights that `model_state` returned into a model in place; the arrays may be read-only."""
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in state.items()})


def model_state(model: SplitVgg19) -> ModelState:
    """Return every weight as a C-contiguous float32 array."""
    return {name: tensor.detach().cpu().contiguous().numpy().copy() for name, tensor in model.state_dict().items()}
