"""One model on one machine, serving any site: prepare, warm up, train, evaluate.

Nothing here knows Ray; `fl.runtime` puts a `SiteTrainer` into an actor. A trainer keeps no state of a site between
calls: each call names its site, round and global parameters, so any worker can serve any site, and a call that is
repeated after a crash gives the same bytes. What a method lets a site remember is on disk (fl/training/site_state.py),
and the call says of which round.
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
from fl.errors import GliofedError
from fl.model.features import FeatureSource, Request
from fl.model.flat import FlatParameters, gather, scatter
from fl.model.speed import SpeedSettings, place, resolve_execution
from fl.model.vgg import NetworkSettings, SplitVgg19
from fl.training.augment import IDENTITY, AugmentSettings, draw_view
from fl.training.exchange import JOB, Reply, RoundTask
from fl.training.local import Correction, Loader, LocalSettings, TrainingSummary, predict, train
from fl.training.method import answer, corrections_of, remembered, require_known
from fl.training.personal import PersonalAnswers, PersonalSettings, head_inputs, tune_head
from fl.training.site_state import SiteMemory, SiteStates
from fl.training.statistics import SiteStatistics, candidate_logits, network_statistics
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
    """All that a trainer is made of; the same setup on the same kind of machine gives the same bytes.

    state_root: where sites keep what they remember, one folder for a job; None where no method lets them.
    """

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
    state_root: Path | None = None


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

    @property
    def state_root(self) -> Path:
        """Folder of what sites keep from call to call. Raises GliofedError where this trainer has none."""
        if self._setup.state_root is None:
            raise GliofedError(
                "sites are to keep something, but this worker has no folder for it; give it a state_root"
            )
        return self._setup.state_root

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

    def train(self, task: RoundTask, site: Site, state_round: int) -> Reply:
        """Run the site's local epochs or steps of one round from the task's parameters.

        state_round: which of the site's rounds was counted last, 0 for none; what it remembers is from then. What it
        remembers now is on disk before the reply is returned. Raises SiteStateError where that memory is not to be
        had, GliofedError where the task asks for what the local settings cannot give.
        """
        local = self._setup.local
        require_known(task, local)
        memory = self._recall(task, site, state_round)
        scatter(task.parameters, self._model.trained_parameters())
        summary = self._train_locally(task, site, corrections_of(task, memory.arrays, self._trained()))
        trained = gather(self._model.trained_parameters())
        reply, kept = answer(task, memory.arrays, local, site=site.name, trained=trained, summary=summary)
        if kept:
            self._states(task).save(site.name, task.round, kept, after=memory)
        return reply

    def evaluate(self, parameters: FlatParameters, scans: Sequence[Scan]) -> NDArray[np.float32]:
        """Return logits_NK of the scans under the given parameters."""
        scatter(parameters, self._model.trained_parameters())
        return self._logits(self._evaluation_features, [self._request(scan, None) for scan in scans])

    def personalise(
        self, parameters: FlatParameters, site: Site, scans: Sequence[Scan], settings: PersonalSettings
    ) -> PersonalAnswers:
        """Return logits of the site's held-out scans under the given parameters, and with a head tuned on the site.

        Only the linear head is tuned, on the site's own training scans under their first view; what it reads is
        computed once. Neither the parameters nor this trainer are changed.
        """
        own = [self._request(scan, 0) for scan in site.scans]
        scatter(parameters, self._model.trained_parameters())
        _, features_NJ = self._read_by_head(self._training_features, own)
        tuned = tune_head(
            self._model.head,
            features_NJ,
            [scan.label for scan in site.scans],
            settings,
            execution=self._execution,
            seed=self._setup.seed,
            site=site.name,
        )
        logits_NK, held_out_NJ = self._read_by_head(
            self._evaluation_features, [self._request(scan, None) for scan in scans]
        )
        with torch.no_grad(), self._execution.autocast():
            tuned_NK = tuned(held_out_NJ).float().cpu().numpy()
        return PersonalAnswers(of_global=logits_NK, of_tuned=tuned_NK)

    def statistics(self, parameters: FlatParameters, site: Site) -> SiteStatistics:
        """Return the sums over what the head reads of the site's own scans, for a head in closed form.

        Raises StatisticsError where the network's head has no bounded features.
        """
        scatter(parameters, self._model.trained_parameters())
        labels = [scan.label for scan in site.scans]
        return network_statistics(self._model, self._plain(site.scans), labels, execution=self._execution)

    def head_logits(
        self,
        parameters: FlatParameters,
        heads: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]],
        scans: Sequence[Scan],
    ) -> NDArray[np.float32]:
        """Return logits_MNK of the scans under each head (weight_KJ, bias_K), the tail run once for all."""
        scatter(parameters, self._model.trained_parameters())
        return candidate_logits(self._model, self._plain(scans), len(scans), heads, execution=self._execution)

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

    def _train_locally(self, task: RoundTask, site: Site, corrections: Sequence[Correction]) -> TrainingSummary:
        scans = [*site.scans, *site.shared_scans]
        return train(
            self._model,
            self._model.classify,
            lambda chosen, epoch: self._training_batch(scans, chosen, epoch),
            [scan.label for scan in scans],
            self._setup.local.schedule(task.round, site.name),
            parameters=self._trained(),
            execution=self._execution,
            seed=self._setup.seed,
            address=("round", task.round, site.name),
            corrections=corrections,
        )

    def _trained(self) -> list[torch.nn.Parameter]:
        return [parameter for _, parameter in self._model.trained_parameters()]

    def _states(self, task: RoundTask) -> SiteStates:
        return SiteStates(self.state_root, job=str(task.config.get(JOB, "")))

    def _recall(self, task: RoundTask, site: Site, state_round: int) -> SiteMemory:
        names = remembered(task)
        if not names:
            return SiteMemory(round=0, previous=0, arrays={})
        return self._states(task).load(site.name, state_round, names, len(task.parameters))

    def _logits(self, source: FeatureSource, requests: Sequence[Request]) -> NDArray[np.float32]:
        return predict(
            self._model,
            self._model.classify,
            lambda chosen, _: source.features([requests[i] for i in chosen]),
            len(requests),
            batch_size=EVALUATION_BATCH,
            execution=self._execution,
        )

    def _read_by_head(self, source: FeatureSource, requests: Sequence[Request]) -> tuple[NDArray[np.float32], Tensor]:
        """Return logits_NK and what the linear head read for them, features_NJ."""
        with head_inputs(self._model) as pieces:
            logits_NK = self._logits(source, requests)
        nothing = torch.empty(0, self._model.head.in_features, device=self._execution.device)
        return logits_NK, torch.cat([nothing, *pieces])

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

    def _plain(self, scans: Sequence[Scan]) -> Loader:
        """Return a loader of the scans' features without augmentation."""
        requests = [self._request(scan, None) for scan in scans]
        return lambda chosen, _: self._evaluation_features.features([requests[i] for i in chosen])

    def _training_batch(self, scans: Sequence[Scan], chosen: NDArray[np.int64], epoch: int) -> Tensor:
        return self._training_features.features(self._requests(scans, chosen, epoch))

    def _warm_up_tail(self, scans: Sequence[Scan], settings: WarmupSettings) -> TrainingSummary:
        return train(
            self._model,
            self._model.classify,
            lambda chosen, epoch: self._training_batch(scans, chosen, epoch),
            [scan.label for scan in scans],
            settings.as_schedule(),
            parameters=self._trained(),
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
