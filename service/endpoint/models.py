"""The models that are served: several names and versions side by side, each exchanged without a gap.

A model is loaded beside the one it replaces: read and verified, put on its provider, tested on its golden images, and
only then swapped in. Requests under way hold the old one and end on it; the last of them frees it. What fails on the
way leaves the old one serving and is told by `index`, unless its signer is no longer trusted: then nothing serves.
"""

from __future__ import annotations

import logging
import re
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from export.bundle import load_bundle
from export.card import INPUT_NAME
from export.errors import ExportError
from export.predictor import Predictor
from export.providers import resolve_providers
from export.signing import Trust
from service.endpoint.errors import BadRequest, Busy, NotFound
from service.endpoint.oip import TensorSpec
from service.endpoint.settings import BundleSource, ServeSettings
from service.keys import trusted_keys

State = Literal["LOADING", "READY", "UNAVAILABLE"]
Outcome = Literal["loaded", "unchanged", "failed", "unloaded"]

_log = logging.getLogger("gliofed.models")


@dataclass(frozen=True, kw_only=True, slots=True, weakref_slot=True, eq=False)
class ServedModel:
    """One version of a model, ready to answer; safe to call from several threads.

    precision: of the graph that runs. signer: fingerprint of the key that signed the bundle.
    """

    name: str
    version: str
    predictor: Predictor
    precision: str
    signer: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def digest(self) -> str:
        """The bundle's digest."""
        return self.predictor.bundle.digest

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of the scores."""
        return self.predictor.bundle.labels

    def infer(self, images_NCHW: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Return outputs by name for float32 images [N,3,S,S]."""
        return dict(zip(outputs, self.predictor.run(images_NCHW, outputs), strict=True))

    def identity(self) -> dict[str, Any]:
        """Return who answers, for the body of an answer."""
        return {
            "name": self.name,
            "version": self.version,
            "digest": self.digest,
            "precision": self.precision,
            "signer": self.signer,
            "data_kind": self.predictor.bundle.data_kind,
            "labels": list(self.labels),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """What is known of one source: the model it gives now, and why there is none or no newer one."""

    source: BundleSource
    name: str
    version: str
    model: ServedModel | None = None
    state: State = "LOADING"
    reason: str = ""


class Registry:
    """The served models. Reading is free of locks; changes are made one at a time, by any thread."""

    def __init__(self, settings: ServeSettings, *, on_change: Callable[[str, Outcome], None] | None = None) -> None:
        """on_change: told the model's name and what became of an attempt to load or unload it.

        Raises PredictorError where the provider that the settings ask for cannot start here.
        """
        self._settings = settings
        self._providers = resolve_providers(settings.provider)
        self._on_change = on_change or (lambda name, outcome: None)
        self._slots = tuple(
            Slot(source=source, name=source.name or source.path.name, version=source.version or "")
            for source in settings.bundles
        )
        self._changing = threading.Lock()

    @property
    def slots(self) -> tuple[Slot, ...]:
        """One slot a source, in the order of the settings."""
        return self._slots

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """Every model that is ready, in the order of the settings."""
        return tuple(slot.model for slot in self._slots if slot.model is not None and slot.state == "READY")

    @property
    def is_ready(self) -> bool:
        """Whether every source gives a model, or was unloaded on purpose."""
        return bool(self.models) and all(slot.state == "READY" or slot.reason == UNLOADED for slot in self._slots)

    def load_all(self) -> None:
        """Load every source for the first time. Raises ExportError for the first that fails."""
        for index in range(len(self._slots)):
            self._load(index)

    def reload(self, name: str | None = None) -> dict[str, str]:
        """Load the sources of a name, or all, again; return why by name and version for those that failed.

        Raises NotFound for a name that no source has.
        """
        chosen = [index for index, slot in enumerate(self._slots) if name in (None, slot.name)]
        if not chosen:
            raise NotFound(f"no model '{_short(name)}' is known here")
        faults: dict[str, str] = {}
        for index in chosen:
            try:
                self._load(index)
            except ExportError as error:
                slot = self._slots[index]
                faults[f"{slot.name} {slot.version}".strip()] = str(error)
        return faults

    def unload(self, name: str) -> None:
        """Take all versions of a name out of service; requests under way end on them. Raises NotFound."""
        with self._changing:
            chosen = [index for index, slot in enumerate(self._slots) if slot.name == name]
            if not chosen:
                raise NotFound(f"no model '{_short(name)}' is known here")
            for index in chosen:
                self._put(index, replace(self._slots[index], model=None, state="UNAVAILABLE", reason=UNLOADED))
        self._on_change(name, "unloaded")

    def get(self, name: str | None = None, version: str | None = None) -> ServedModel:
        """Return a model: by default the first source's name, and the newest version.

        Raises NotFound for a name or version that nobody knows, Busy for one that is not ready.
        """
        name = self._slots[0].name if name is None else name
        found = [slot for slot in self._slots if slot.name == name and version in (None, slot.version)]
        ready = [slot.model for slot in found if slot.model is not None and slot.state == "READY"]
        if ready:
            return max(ready, key=lambda model: _order(model.version))
        if found or not self.is_ready:
            raise Busy(f"model '{_short(name)}' is not ready: {found[0].reason if found else 'loading'}")
        which = f"'{_short(name)}'" if version is None else f"'{_short(name)}' version '{_short(version)}'"
        raise NotFound(f"Request for unknown model: {which} is not found")

    def versions(self, name: str) -> list[str]:
        """Return the versions of a name that are ready, oldest first."""
        return sorted((model.version for model in self.models if model.name == name), key=_order)

    def _load(self, index: int) -> None:
        with self._changing:
            slot = self._slots[index]
            try:
                model = self._open(slot)
            except Exception as error:  # whatever is wrong with the new one: the old one goes on, and it is told
                fault = error if isinstance(error, ExportError) else LoadFault(slot.source.path, error)
                _log.error("model not loaded", extra={"facts": {"model": slot.name, "reason": str(fault)}})
                kept = slot.model if self._trusts(slot.model) else None
                state: State = "UNAVAILABLE" if kept is None else "READY"
                self._put(index, replace(slot, model=kept, state=state, reason=str(fault)))
                self._on_change(slot.name, "failed")
                if fault is error:
                    raise
                raise fault from error
            loaded = replace(slot, name=model.name, version=model.version, model=model, state="READY", reason="")
            self._put(index, loaded)
        outcome: Outcome = "unchanged" if model is slot.model else "loaded"
        _log.info("model " + outcome, extra={"facts": {"model": model.name, "version": model.version}})
        self._on_change(model.name, outcome)

    def _trust(self) -> Trust:
        return trusted_keys(self._settings.trust)

    def _trusts(self, model: ServedModel | None) -> bool:
        """Whether there is a model whose signer is still trusted: a key that is taken away takes its models along."""
        try:
            return model is not None and model.signer in {key.fingerprint for key in self._trust().keys}
        except ExportError:  # the keys cannot be read: nobody is trusted
            return False

    def _open(self, slot: Slot) -> ServedModel:
        """Return the source's model, verified and tested; the one that is there where it is the same bundle."""
        bundle = load_bundle(slot.source.path, self._trust())
        if slot.model is not None and slot.model.digest == bundle.digest:
            bundle.check_files()  # what serves came from these; who asks is told if they could not be served again
            return slot.model
        name = slot.source.name or bundle.name
        version = slot.source.version or bundle.version
        taken = [(other.name, other.version) for other in self._slots if other.model and other is not slot]
        if (name, version) in taken:
            raise ServingConflict(
                f"{slot.source.path}: name '{name}' and version '{version}' are served already; give it others by "
                "`name` and `version` in `bundles`"
            )
        settings = self._settings
        predictor = Predictor(
            bundle,
            precision=slot.source.precision,
            num_threads=settings.threads,
            providers=self._providers,
            engine_cache=settings.engine_cache,
        )
        if predictor.self_check() is None:
            predictor.answer([np.zeros((64, 64), np.uint8)])
        size = bundle.preprocess.size
        model = ServedModel(
            name=name,
            version=version,
            predictor=predictor,
            precision=predictor.precision,
            signer=bundle.signer.fingerprint,
            inputs=(TensorSpec(name=INPUT_NAME, datatype="FP32", shape=(-1, 3, size, size)),),
            outputs=tuple(
                TensorSpec(name=output, datatype="FP32", shape=shape) for output, shape in predictor.outputs.items()
            ),
        )
        facts = {"model": name, "version": version, "digest": bundle.digest[:12]}
        weakref.finalize(model, _log.info, "model released", extra={"facts": facts}).atexit = False
        return model

    def _put(self, index: int, slot: Slot) -> None:
        self._slots = (*self._slots[:index], slot, *self._slots[index + 1 :])


UNLOADED = "unloaded"


class ServingConflict(ExportError):
    """Two sources would serve the same name and version."""


class LoadFault(ExportError):
    """A bundle cannot be loaded for a reason that nobody foresaw: memory, or a disk that fails."""

    def __init__(self, path: Path, error: Exception) -> None:
        super().__init__(f"{path}: cannot be loaded ({type(error).__name__}: {error}); see to that and load it again")


def check_images(images_NCHW: NDArray[np.float32], max_images: int) -> None:
    """Raise BadRequest for more images than one request may have."""
    if len(images_NCHW) > max_images:
        raise BadRequest(f"the request has {len(images_NCHW)} images; at most {max_images} are taken (max_images)")


def _order(version: str) -> list[tuple[int, int, str]]:
    """Return a key that puts 0.10.0 after 0.9.0, and numbers before words."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"\d+|[^\d]+", version)]


def _short(text: str | None) -> str:
    return (text or "")[:80]
