"""The command line: `gliofed train|eval|predict|provision|coordinator|site|data audit|doctor|config`.

Exit codes: 0 done; 1 a fault, told in one message; 2 a bad spec or bad usage; 75 stopped by a signal with a checkpoint
on disk (sysexits' EX_TEMPFAIL: run again with --resume).
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
) -> None:
    """Measure a bundle on labelled images; metrics as JSON on standard output."""
    from service.answering import evaluate_bundle

    print(json.dumps(evaluate_bundle(bundle, data, deduplicate_against), indent=1))


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="JPEG or PNG images.")],
    bundle: BundleFolder,
    heatmap: Annotated[
        Path | None, typer.Option(help="Write the class-activation map over the image (one image).")
    ] = None,
) -> None:
    """Classify images with a bundle: one JSON object a line."""
    from service.answering import predict_images

    if heatmap is not None and len(images) != 1:
        raise SpecError([f"--heatmap: goes with one image, {len(images)} were given"])
    for answer in predict_images(bundle, images, heatmap):
        print(json.dumps(answer))


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


def _fail(error: Exception, code: int) -> None:
    print(error, file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
