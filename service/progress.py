"""What a person sees while a job runs: rich on a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

PLAIN_INTERVAL_SECONDS = 10.0

T = TypeVar("T")


class Display:
    """Writes to standard output: bars and tables on a terminal, one plain line at a time elsewhere."""

    def __init__(self, *, terminal: bool | None = None) -> None:
        self._terminal = sys.stdout.isatty() if terminal is None else terminal
        self._console = Console(highlight=False, soft_wrap=not self._terminal)

    def say(self, text: str) -> None:
        """Write one line."""
        if self._terminal:
            self._console.print(text, markup=False)
        else:
            print(text, flush=True)

    def step(self, title: str) -> None:
        """Begin a step of the journey."""
        if self._terminal:
            self._console.print(f"[bold]{title}[/bold]")
        else:
            print(f"== {title}", flush=True)

    def track(self, items: Iterable[T], total: int, title: str) -> Iterator[T]:
        """Yield the items while showing how many of `total` have come."""
        with self._meter(total, title) as show:
            for number, item in enumerate(items, 1):
                show(number)
                yield item

    def show(self, done: Iterable[int], total: int, title: str) -> None:
        """Consume counts of what is done so far, showing the latest of `total`."""
        with self._meter(total, title) as show:
            for count in done:
                show(count)

    @contextmanager
    def waiting(self, title: str) -> Iterator[None]:
        """Show that a step without a countable amount still goes on, and for how long."""
        if self._terminal:
            columns = (TextColumn("  {task.description}"), SpinnerColumn(), TimeElapsedColumn())
            with Progress(*columns, console=self._console, transient=True) as progress:
                progress.add_task(title, total=None)
                yield
            return
        done, started = threading.Event(), time.monotonic()

        def tell() -> None:
            while not done.wait(PLAIN_INTERVAL_SECONDS):
                print(f"   {title}: {time.monotonic() - started:.0f} s", flush=True)

        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        try:
            yield
        finally:
            done.set()
            teller.join()

    def table(
        self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, num_text_columns: int = 1
    ) -> None:
        """Write a table; the first `num_text_columns` columns are text, the others are figures."""
        if self._terminal:
            table = Table(title=title, title_justify="left")
            for number, name in enumerate(header):
                table.add_column(name, justify="left" if number < num_text_columns else "right")
            for row in rows:
                table.add_row(*row)
            self._console.print(table)
            return
        widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
        print(f"\n{title}")
        for row in (header, ["-" * width for width in widths], *rows):
            cells = [
                text.ljust(width) if number < num_text_columns else text.rjust(width)
                for number, (text, width) in enumerate(zip(row, widths, strict=True))
            ]
            print("  ".join(cells).rstrip(), flush=True)

    @contextmanager
    def _meter(self, total: int, title: str) -> Iterator[Callable[[int], None]]:
        if not self._terminal:
            yield _PlainMeter(total, title).show
            return
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(title, total=total)
            yield lambda count: progress.update(task, completed=count)


class _PlainMeter:
    """A line every few seconds, for logs."""

    def __init__(self, total: int, title: str) -> None:
        self._total = total
        self._title = title
        self._last_said = time.monotonic()

    def show(self, count: int) -> None:
        if time.monotonic() - self._last_said >= PLAIN_INTERVAL_SECONDS:
            print(f"   {self._title}: {count} of {self._total}", flush=True)
            self._last_said = time.monotonic()
