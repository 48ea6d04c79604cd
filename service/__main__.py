"""The command line, `gliofed COMMAND`.

Exit codes: 0 done; 1 a fault, told in one message; 2 a bad spec or bad usage; 75 stopped by a signal with a checkpoint
on disk (sysexits' EX_TEMPFAIL: run again with --resume).
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.api_key_commands import api_keys_app
from service.audit_commands import audit_app
from service.extras import what_is_missing
from service.key_commands import TrustOption, bundle_app, keys_app
from service.signals import EXIT_STOPPED, stop_requests
from service.yaml_source import SpecError

if TYPE_CHECKING:
    from service.progress import Display
    from service.runs import Run

EXIT_FAULT = 1
EXIT_BAD_SPEC = 2

app = typer.Typer(
    name="gliofed",
    help="Federated training of brain-tumour MRI classifiers. Research software; not for clinical use.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Look at data before training on it.", no_args_is_help=True)
config_app = typer.Typer(help="Job files: their schema, their faults, their values.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(config_app, name="config")
app.add_typer(bundle_app, name="bundle")
app.add_typer(keys_app, name="keys")
app.add_typer(api_keys_app, name="api-keys")
app.add_typer(audit_app, name="audit")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(version("gliofed"))
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of gliofed itself."""


JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job file.")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="A.B=VALUE", help="Override one setting; may be repeated.")
]
BundleFolder = Annotated[Path, typer.Option("--bundle", help="The bundle's folder.")]


@app.command()
def train(
    job: JobFile,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default, nobody mutates it
    run_dir: Annotated[Path | None, typer.Option(help="The run's folder; default runs/<name>-<time>.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --run-dir, or begin it.")] = False,
) -> None:
    """Train a federation, test it, export its model and write a report."""
    with _begun(job, overrides, run_dir, resume=resume) as (run, display, should_stop):
        from service.job import run_job  # it imports Ray, which reads its environment then

        run_job(run, display, should_stop)


@app.command(name="eval")
def evaluate(
    bundle: BundleFolder,
    data: Annotated[Path, typer.Option(help="Folder <class>/*, or Kaggle's (its Testing/ is used).")],
    deduplicate_against: Annotated[
        Path | None,
        typer.Option(help="Training data: images with a near-copy there are left out of a second figure."),
    ] = None,
    trust: TrustOption = [],  # noqa: B006
) -> None:
    """Measure a bundle on labelled images; metrics as JSON on standard output."""
    from service.evaluating import evaluate_bundle
    from service.keys import trusted_keys

    report = evaluate_bundle(bundle, data, deduplicate_against, trust=trusted_keys(trust))
    print(json.dumps(report, indent=1))


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="JPEG, PNG or DICOM images.")],
    bundle: BundleFolder,
    *,
    heatmap: Annotated[
        Path | None, typer.Option(help="Write the class-activation map over the image (one image).")
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="float32|int8", help="Which of the bundle's models answers.")
    ] = "float32",
    trust: TrustOption = [],  # noqa: B006
    dicom_out: Annotated[
        Path | None, typer.Option(help="Folder for answers to DICOM images as DICOM: overlay, maps, report.")
    ] = None,
) -> None:
    """Classify images with a bundle: one JSON object a line."""
    from service.keys import trusted_keys
    from service.predicting import predict_images

    if heatmap is not None and len(images) != 1:
        raise SpecError([f"--heatmap: goes with one image, {len(images)} were given"])
    if precision not in ("float32", "int8"):
        raise SpecError([f"--precision: is {precision!r}; expected float32 or int8"])
    asked = predict_images(
        bundle,
        images,
        heatmap,
        trust=trusted_keys(trust),
        precision="int8" if precision == "int8" else "float32",
        dicom_out=dicom_out,
    )
    for answer in asked:
        print(json.dumps(answer))


@app.command()
def serve(
    bundles: Annotated[list[Path], typer.Option("--bundle", help="A bundle's folder; may be repeated.")] = [],  # noqa: B006
    config: Annotated[Path | None, typer.Option(help="Settings of the endpoint, serve.yaml.")] = None,
    overrides: Overrides = [],  # noqa: B006
    trust: TrustOption = [],  # noqa: B006
) -> None:
    """Serve bundles over HTTP: Open Inference Protocol v2, and files to answers at /v1/predict."""
    from export.errors import ExportError
    from service.endpoint.run import serve as run_endpoint
    from service.endpoint.settings import load_settings

    if fault := run_endpoint(load_settings(config, overrides, bundles, trust)):
        raise ExportError(fault)


@app.command(name="export")
def export_model(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    *,
    to: Annotated[str, typer.Option(metavar="A,B", help="onnx, int8, tensorrt, triton; one or several.")] = "onnx,int8",
    out: Annotated[Path | None, typer.Option(help="Where to write bundle/ and triton/; default RUN/export.")] = None,
    model_version: Annotated[
        str | None, typer.Option(help="Version of the new bundle; default: that of the run's own.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Private key to sign with; default: this machine's.")] = None,
    trust: TrustOption = [],  # noqa: B006
) -> None:
    """Export a finished run's model: a signed bundle, with a quantized twin, engines and a Triton repository."""
    from service.export_run import export_run
    from service.keys import ExportSettings, signing_key, trusted_keys
    from service.layers import validate
    from service.progress import Display

    wanted: dict[str, object] = {
        "to": [name.strip() for name in to.split(",")],
        "signing_key": None if key is None else str(key),
    }
    if model_version is not None:
        wanted["model_version"] = model_version
    settings = validate(ExportSettings, wanted, {}, Path("gliofed export"))
    display = Display()
    with stop_requests() as should_stop:
        signer = signing_key(settings, display.say)
        bundle = export_run(
            run,
            settings.to,
            model_version=model_version,
            out=out or run / "export",
            key=signer,
            trust=trusted_keys(trust),
            display=display,
            should_stop=should_stop,
        )
    print(bundle)


@app.command()
def provision(
    out: Annotated[Path, typer.Option(help="Folder of the federation; made, or added to.")],
    sites: Annotated[str, typer.Option(metavar="A,B,C", help="Names of the hospitals to add.")] = "",
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where the hospitals reach the coordinator.")
    ] = None,
    days: Annotated[int, typer.Option(help="Life of the coordinator's certificate.")] = 365,
    renew: Annotated[bool, typer.Option("--renew", help="Give the coordinator a new certificate.")] = False,
) -> None:
    """Make a federation's certificates and keys: one folder for the coordinator, one for each hospital."""
    from fl.hospital.provision import provision as make_folders
    from fl.hospital.provision import renew_certificate

    if renew == bool(sites):
        raise SpecError(["--sites, --renew: give one of them"])
    if renew:
        print(f"{out / 'coordinator'}: a new certificate for {renew_certificate(out, days=days)}, {days} days")
        return
    for folder in make_folders(out, [name.strip() for name in sites.split(",")], address, days=days):
        print(folder)


@app.command()
def coordinator(
    job: JobFile,
    *,
    keys: Annotated[Path, typer.Option(help="The coordinator's folder, made by `gliofed provision`.")],
    overrides: Overrides = [],  # noqa: B006
    run_dir: Annotated[Path | None, typer.Option(help="The run's folder; default runs/<name>-<time>.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --run-dir, or begin it.")] = False,
    quorum: Annotated[
        int | None, typer.Option(min=1, help="Begin when so many sites are connected; default all.")
    ] = None,
) -> None:
    """Train a federation of hospitals over TLS: wait for their sites, then run the job's rounds with them."""
    with _begun(job, overrides, run_dir, resume=resume) as (run, display, should_stop):
        from fl.hospital.folders import read_coordinator_folder
        from service.coordinate import coordinate

        coordinate(run, read_coordinator_folder(keys), display, should_stop, quorum=quorum)


@app.command()
def site(
    keys: Annotated[Path, typer.Option(help="This hospital's folder, made by `gliofed provision`.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder <class>/* of this hospital's scans; default: `data:` in site.yaml.")
    ] = None,
    verify_audit: Annotated[
        bool, typer.Option("--verify-audit", help="Only check the audit log; exit 1 where it is broken.")
    ] = False,
) -> None:
    """Be one hospital of a federation: connect to the coordinator, train on own scans, keep an audit log."""
    from fl.hospital.folders import read_site_folder

    folder = read_site_folder(keys)
    from service.progress import Display
    from service.site import serve, verify_log

    if not verify_audit:
        serve(folder, data, Display())
    elif not verify_log(keys, Display()):
        sys.exit(EXIT_FAULT)


@data_app.command()
def audit(
    folders: Annotated[list[Path], typer.Argument(help="Data folders, in any known layout.")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
) -> None:
    """Find unreadable, duplicate and near-duplicate images within and across folders."""
    from fl.data.audit import audit as audit_folders
    from fl.data.audit import format_audit

    report = audit_folders(folders)
    print(json.dumps(report.to_json(), indent=1) if as_json else format_audit(report))


@app.command()
def doctor() -> None:
    """Tell what this machine has, and what each absence means."""
    from service.doctor import examine
    from service.progress import Display

    rows = [(found.what, found.here, found.meaning) for found in examine()]
    Display().table("gliofed doctor", ("what", "here", "meaning"), rows, num_text_columns=3)


@config_app.command()
def schema() -> None:
    """Print the JSON Schema of job files, for editors."""
    from service.spec import job_schema

    print(json.dumps(job_schema(), indent=1))


@config_app.command()
def validate(job: JobFile, overrides: Overrides = []) -> None:  # noqa: B006
    """Check a job file; every fault with its line and column."""
    from service.spec import load_spec

    spec = load_spec(job, overrides)
    print(f"{job}: valid; scenario {spec.scenario}")


@config_app.command()
def explain(job: JobFile, overrides: Overrides = []) -> None:  # noqa: B006
    """Print every resolved setting: value, where it comes from, what it means."""
    from service.spec import explain as explain_spec

    for setting in explain_spec(job, overrides):
        print(f"{setting.key} = {setting.value}\n    from {setting.origin}: {setting.description}")


@contextmanager
def _begun(
    job: Path, overrides: Sequence[str], run_dir: Path | None, *, resume: bool
) -> Iterator[tuple[Run, Display, Callable[[], bool]]]:
    """Open a job's run; yield it, the screen and whether a signal asked to stop; then print what came out."""
    from fl.runtime.cluster import prepare_environment
    from service.progress import Display
    from service.runs import default_run_folder, link_latest, open_run
    from service.spec import load_spec
    from service.summary import print_summary

    if resume and run_dir is None:
        raise SpecError(["--resume: needs --run-dir, the folder of the run to continue"])
    spec = load_spec(job, overrides)
    prepare_environment(spec.ray)
    display = Display()
    with stop_requests() as should_stop, open_run(run_dir or default_run_folder(spec), spec, resume=resume) as run:
        display.say(f"gliofed: job `{spec.name}`, scenario `{spec.scenario}`, run {run.folder}")
        yield run, display, should_stop
    if run_dir is None:
        link_latest(run.folder)
    print_summary(display, run.folder)


def main() -> None:
    """Run the command line; deliberate failures print one message and set the exit code."""
    try:
        importlib.import_module("kernels._C")
    except ImportError as error:
        _fail(
            ImportError(f"gliofed's compiled kernels are missing or for another Python ({error}): make setup"),
            EXIT_FAULT,
        )
    from export.errors import ExportError
    from fl.errors import GliofedError, Stopped
    from kernels.decode import UnreadableImage

    try:
        app()
    except SpecError as error:
        _fail(error, EXIT_BAD_SPEC)
    except Stopped as stopped:
        _fail(stopped, EXIT_STOPPED)
    except (GliofedError, ExportError, UnreadableImage) as error:
        _fail(error, EXIT_FAULT)
    except ModuleNotFoundError as error:
        if (missing := what_is_missing(error)) is None:
            raise
        _fail(missing, EXIT_FAULT)


def _fail(error: Exception | str, code: int) -> None:
    print(error, file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
