"""`gliofed audit verify`: look at an audit log, a site's or an endpoint's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

audit_app = typer.Typer(help="Look at an audit log: is it whole?", no_args_is_help=True)


@audit_app.command(name="verify")
def verify_file(
    log: Annotated[Path, typer.Argument(help="The log; its older files are looked for beside it.")],
) -> None:
    """Check every line of a log; exit 1 where one was changed, removed or put in."""
    from fl.audit_chain import verify

    found = verify(log)
    print(f"{log}: {found}")
    if found.fault is not None:
        sys.exit(1)
