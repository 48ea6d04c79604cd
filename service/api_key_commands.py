"""`gliofed api-keys new|list|revoke`: who may use the endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

api_keys_app = typer.Typer(help="API keys of the endpoint: a file of names and hashes.", no_args_is_help=True)

KeysFile = Annotated[Path, typer.Option("--file", help="The file of keys; `access.api_keys` of the endpoint.")]


@api_keys_app.command()
def new(
    name: Annotated[str, typer.Argument(help="Whose key it is; the audit log names it.")],
    file: KeysFile,
    roles: Annotated[
        list[str],
        typer.Option("--role", help="predict, metrics or admin (load and unload models); may be repeated."),
    ] = ["predict"],  # noqa: B006 - typer reads the default, nobody mutates it
) -> None:
    """Make a key and print it, once: only its hash is kept."""
    from service.endpoint.keys import new_key

    print(new_key(file, name, roles))


@api_keys_app.command(name="list")
def list_keys(file: KeysFile) -> None:
    """List the keys' names, roles and dates."""
    from service.endpoint.keys import read_keys

    for key in read_keys(file):
        print(f"{key.name}  {','.join(key.roles)}  {key.created:%Y-%m-%d}")


@api_keys_app.command()
def revoke(name: Annotated[str, typer.Argument(help="Whose key.")], file: KeysFile) -> None:
    """Take a key back; running endpoints refuse it at once."""
    from service.endpoint.keys import revoke_key

    revoke_key(file, name)
    print(f"{file}: the key of {name} is revoked")
