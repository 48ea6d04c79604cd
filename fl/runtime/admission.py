"""Admission of sites whose folders lie on other nodes: the files are read there, only what is known of them returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import ray

from fl.data.admission import AdmissionSettings, admit
from fl.data.intake import SITE_PREFIX, Outcome, site_files
from fl.errors import DataError

TIMEOUT_SECONDS = 3600.0


def admit_at_nodes(root: Path, nodes: Mapping[str, str], settings: AdmissionSettings) -> Iterator[tuple[str, Outcome]]:
    """Yield (set name, scan or quarantined) for every file of the pinned sites, site by site.

    nodes: site name to the Ray custom resource of its node. Raises DataError, naming site and resource, where a
    node does not answer within an hour or does not have the site's folder.
    """
    remote = ray.remote(num_cpus=0, max_retries=0)(_admit_site)
    pending = {
        site: remote.options(resources={resource: 0.001}).remote(root, site, settings)
        for site, resource in nodes.items()
    }
    for site, reference in pending.items():
        try:
            outcomes = ray.get(reference, timeout=TIMEOUT_SECONDS)
        except ray.exceptions.RayError as error:
            raise DataError(
                f"site {site!r}: its scans could not be admitted on the node with resource {nodes[site]!r} ({error}); "
                "check data.nodes and that the node is up"
            ) from error
        yield from ((f"{SITE_PREFIX}{site}", outcome) for outcome in outcomes)


def _admit_site(root: Path, site: str, settings: AdmissionSettings) -> list[Outcome]:
    return list(admit(site_files(root, site), settings))
