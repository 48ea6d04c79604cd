"""Phantoms that an exported model is probed with: golden inputs, and lesions whose place is known.

They are drawn afresh, from scenes that no training, test or synthetic set can hold, and no patient is in them.
"""

from __future__ import annotations

from collections.abc import Sequence

from fl.data.phantoms import NOMINAL_SCANNER, Phantom, PhantomSettings, load_atlas, make_phantom
from fl.data.phantoms.settings import FIRST_INDEX, MAX_IMAGES_PER_SET
from fl.types import CLASSES
from service.caches import cache_folder
from service.spec import JobSpec

FIRST_PROBE = max(FIRST_INDEX.values()) + MAX_IMAGES_PER_SET
"""Scene indices beyond those of every set."""

LESIONS = tuple(label for label, name in enumerate(CLASSES) if name != "notumor")
REAL_SIZE_PIXELS = 224
"""Side of probes for a model of real MRI; one of phantoms gets what it was trained on."""


def draw_probes(spec: JobSpec, labels: Sequence[int]) -> tuple[Phantom, ...]:
    """Return one phantom a label, in order, each of a scene of its own. Equal specs and labels give equal pixels."""
    of_phantoms = spec.data.source == "phantom"
    settings = spec.data.phantom if of_phantoms else PhantomSettings(size_pixels=REAL_SIZE_PIXELS)
    atlas = load_atlas(cache_folder(spec) / "phantoms")
    return tuple(
        make_phantom(atlas, label=label, index=FIRST_PROBE + at, settings=settings, scanner=NOMINAL_SCANNER)
        for at, label in enumerate(labels)
    )
