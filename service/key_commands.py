"""The command lines `gliofed keys new|show` and `gliofed bundle verify|show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from export.bundle import Bundle

keys_app = typer.Typer(help="Keys that sign bundles and check them.", no_args_is_help=True)
bundle_app = typer.Typer(help="Look at a bundle and at who signed it.", no_args_is_help=True)

TrustOption = Annotated[
    list[Path],
    typer.Option(
        "--trust",
        metavar="FILE|FOLDER",
        help="Accept bundles of these public keys; may be repeated. Default: every *.pub in $GLIOFED_KEYS, else in "
        "~/.config/gliofed/keys.",
    ),
]
BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder.")]


@keys_app.command()
def new(
    folder: Annotated[Path | None, typer.Argument(help="Where to; default: this machine's folder of keys.")] = None,
) -> None:
    """Make a key pair: signing.pem, which stays here, and signing.pub, for those who are to accept your bundles."""
    from export.signing import new_key
    from service.keys import keys_folder

    key = new_key(folder or keys_folder())
    print(f"private  {key.path} (keep it to yourself)")
    print(f"public   {key.path.with_suffix('.pub')} (give it away)")
    print(f"fingerprint {key.public.fingerprint}")


@keys_app.command(name="show")
def show_keys(
    keys: Annotated[
        list[Path] | None, typer.Argument(help="Key files or folders; default: this machine's folder of keys.")
    ] = None,
) -> None:
    """Print the fingerprint of each public key: what two people compare over the telephone."""
    from service.keys import trusted_keys

    trust = trusted_keys(keys or [])
    for key in trust.keys:
        print(f"{key.fingerprint}  {key.source}")
    if not trust.keys:
        from service.keys import keys_folder

        print(f"no public key in {keys_folder()}: no bundle is accepted without --trust")


@bundle_app.command()
def verify(bundle: BundleArgument, trust: TrustOption = []) -> None:  # noqa: B006
    """Check the signature and every byte of a bundle; exit 1 where anything is amiss."""
    from export.bundle import load_bundle
    from service.keys import trusted_keys

    loaded = load_bundle(bundle, trusted_keys(trust))
    loaded.check_files()
    print(f"{bundle}: whole, {len(loaded.files)} files; signed by {_signer(loaded)}")


@bundle_app.command(name="show")
def show_bundle(bundle: BundleArgument, trust: TrustOption = []) -> None:  # noqa: B006
    """Print what a bundle holds, who signed it, and its figures."""
    from export.bundle import load_bundle
    from service.keys import trusted_keys

    loaded = load_bundle(bundle, trusted_keys(trust))
    rows = {
        "model": f"{loaded.name} {loaded.version}",
        "digest": loaded.digest,
        "signer": _signer(loaded),
        "data": loaded.data_kind,
        "labels": ", ".join(loaded.labels),
        "input": f"{loaded.preprocess.size}x{loaded.preprocess.size}, {loaded.preprocess.semantics}",
    }
    for key, value in rows.items():
        print(f"{key:8} {value}")
    for name in loaded.files:
        print(f"file     {name} ({loaded.entries[name].size_bytes} bytes)")
    for name, figure in _figures(loaded.metrics):
        print(f"figure   {name} {figure:.4f}" if isinstance(figure, float) else f"figure   {name} {figure}")


def _signer(bundle: Bundle) -> str:
    return f"{bundle.signer.fingerprint} ({bundle.signer.source})"


def _figures(metrics: Any, above: str = "") -> list[tuple[str, int | float]]:
    """Return single numbers of the metrics by dotted name; lists stay in metrics.json."""
    if isinstance(metrics, bool) or not isinstance(metrics, dict | int | float):
        return []
    if not isinstance(metrics, dict):
        return [(above, metrics)]
    return [
        row for key, value in sorted(metrics.items()) for row in _figures(value, f"{above}.{key}" if above else key)
    ]
