"""`gliofed export`: a finished run's model once more, in the forms that are wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from export.bundle import load_bundle
from export.signing import SigningKey, Trust
from fl.errors import DataError
from service.coordinate import HOSPITALS_FILE, gather_tests, hospital_federation
from service.job import Desk, gather_data
from service.keys import Target
from service.machine import PhaseClock
from service.progress import Display
from service.release import Order, release, require_targets
from service.runs import Run
from service.ship import MEASURED, Graph
from service.spec import load_spec


def export_run(
    folder: Path,
    targets: Sequence[Target],
    *,
    model_version: str | None,
    out: Path,
    key: SigningKey,
    trust: Trust,
    display: Display,
    should_stop: Callable[[], bool],
) -> Path:
    """Write the bundle of a finished run to out/bundle, and out/triton where it is wanted; return the bundle's folder.

    model_version: of the new bundle; None: the old one's. The model is that of the run's own bundle, which a key of
    `trust` signed; calibration and figures come from the run's data, which must be what they were. Raises
    UntrustedBundle, DataError, and what `release` raises.
    """
    require_targets(targets)
    source = load_bundle(folder / "bundle", trust)
    run = Run(folder=folder, spec=load_spec(folder / "spec.yaml"), created=datetime.now(UTC).isoformat())
    desk = Desk(run=run, display=display, clock=PhaseClock(), should_stop=should_stop, key=key)
    if (folder / HOSPITALS_FILE).exists():
        federation = hospital_federation((), gather_tests(desk))
    else:
        federation = gather_data(desk)
        if federation.digest() != source.provenance["data"]:
            raise DataError(
                f"{folder}: the data are not those that its model was trained on (digest {federation.digest()[:12]}, "
                f"then {str(source.provenance['data'])[:12]}); bring them back, figures of other data would mislead"
            )
    out.mkdir(parents=True, exist_ok=True)
    order = Order(
        targets=frozenset(targets),
        model_version=model_version or source.version,
        folder=out / "bundle",
        triton=out / "triton",
        key=key,
        insists=True,
        say=display.say,
    )
    metrics = {name: value for name, value in source.metrics.items() if name not in MEASURED}
    graph = Graph(onnx_bytes=source.model_onnx, provenance=source.provenance)
    return release(run, federation, graph, metrics, order)
