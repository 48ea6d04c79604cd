"""Admission of sites whose folders lie on other nodes: the files are read there, only what is known of them returns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import ray

from fl.data.admission import AdmissionSettings, admit
from fl.data.intake import SITE_PREFIX, Outcome, site_files
from fl.errors import DataError, Stopped
from fl.runtime.pool import POLL_SECONDS, brief

TIMEOUT_SECONDS = 3600.0


def admit_at_nodes(
    root: Path,
    nodes: Mapping[str, str],
    settings: AdmissionSettings,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[str, Outcome]]:
    """Yield (set name, scan or quarantined) for every file of the pinned sites, site by site.

    nodes: site name to the Ray custom resource of its node. should_stop: asked while waiting; True raises Stopped.
    Raises DataError, naming site and resource, where no node offers the resource, the node does not answer within
    an hour, or it does not have the site's folder.
    """
    _require_offered(nodes)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    remote = ray.remote(num_cpus=0, max_retries=0)(_admit_site)
    pending = {
        site: remote.options(resources={resource: 0.001}).remote(root, site, settings)
        for site, resource in nodes.items()
    }
    for site, reference in pending.items():
        while not ray.wait([reference], timeout=POLL_SECONDS)[0] and time.monotonic() < deadline:
            if should_stop():
                raise Stopped("stopped by a signal before the first round; continue with --resume")
        try:
            outcomes = ray.get(reference, timeout=0)
        except ray.exceptions.RayError as error:
            raise DataError(
                f"site {site!r}: its scans could not be admitted on the node with resource {nodes[site]!r} "
                f"({brief(error)}); check data.nodes and that the node is up"
            ) from error
        yield from ((f"{SITE_PREFIX}{site}", outcome) for outcome in outcomes)


def _require_offered(nodes: Mapping[str, str]) -> None:
    if not nodes:
        return
    offered = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for site, resource in nodes.items():
        if resource not in offered:
            custom = [name for name in sorted(offered) if not name.startswith(("node:", "accelerator_type:"))]
            raise DataError(
                f"data.nodes: site {site!r} is pinned to resource {resource!r}, which no node of the cluster offers "
                f"(they offer {', '.join(custom)}); start its node with "
                f"`ray start --address=HEAD --resources='{{\"{resource}\": 1}}'`"
            )


def _admit_site(root: Path, site: str, settings: AdmissionSettings) -> list[Outcome]:
    return list(admit(site_files(root, site), settings))
