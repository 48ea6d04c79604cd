"""Personalised evaluation: what the global model, and a head tuned to one site, are worth to that site.

Source: the usual protocol of personalised federated learning (Wang et al. 2019, "Federated Evaluation of On-device
Personalization"): a site's own distribution of classes is what its patients will bring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fl.data.partition import apportion
from fl.evaluation.metrics import ClassificationMetrics
from fl.random import stream
from fl.types import CLASSES, Scan, Site


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PersonalResult:
    """One site's figures on scans of its own distribution: the global model's, and its tuned head's."""

    site: str
    with_global: ClassificationMetrics
    with_tuned_head: ClassificationMetrics


def local_scans(sites: Sequence[Site], scans: Sequence[Scan], *, seed: int) -> dict[str, tuple[Scan, ...]]:
    """Deal held-out scans to sites so that each gets its own distribution: a function of its arguments alone.

    The scans of each class go to the sites in proportion to how many training scans of it they have, none to a site
    that has none. A hospital that keeps its own validation scans gets those, and none of the others. Sites left
    without a scan are not in the result.
    """
    dealt: dict[str, list[Scan]] = {site.name: list(site.validation_scans) for site in sites}
    simulated = [site for site in sites if not site.validation_scans]
    for label in range(len(CLASSES)):
        counts_S = np.array([sum(scan.label == label for scan in site.scans) for site in simulated], np.float64)
        of_class = [scan for scan in scans if scan.label == label]
        if not counts_S.sum() or not of_class:
            continue
        order = stream(seed, "personal", label).permutation(len(of_class))
        ends = np.cumsum(apportion(len(of_class), counts_S / counts_S.sum()))
        for site, chosen in zip(simulated, np.split(order, ends[:-1]), strict=True):
            dealt[site.name] += [of_class[index] for index in chosen]
    return {name: tuple(own) for name, own in dealt.items() if own}
