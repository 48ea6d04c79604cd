"""python -m benchmarks SUITE: measure a suite, print its table, write benchmarks/results/SUITE.json."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from benchmarks import kernels, rounds, serve
from benchmarks.case import Case, Suite, Trial
from benchmarks.contest import Contest, run_contest
from benchmarks.machine import describe_machine
from benchmarks.measure import FULL, QUICK, Budget
from benchmarks.report import print_table, title_of, write_json
from benchmarks.row import Row, run_case
from service.progress import Display

RESULTS = Path(__file__).parent / "results"
MEMORY_DISK = Path("/dev/shm")
EVERY_CASE = "*"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """How a suite is made: of a folder, and whether it is to be quick. in_memory: where that folder lies."""

    make: Callable[[Path, bool], Suite]
    in_memory: bool


SUITES = {
    # files that a case reads lie in memory: a disk is not what is measured
    "kernels": Entry(make=lambda folder, quick: kernels.suite(folder), in_memory=True),
    # jobs keep their features where a user's would lie
    "round": Entry(
        make=lambda folder, quick: rounds.suite(folder, rounds.QUICK if quick else rounds.FULL), in_memory=False
    ),
    "serve": Entry(
        make=lambda folder, quick: serve.suite(folder, serve.QUICK if quick else serve.FULL), in_memory=False
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The command line. output None: the suite's own file for a whole run, no file for a quick or partial one."""

    suite: str
    quick: bool = False
    check: bool = False
    case: str = EVERY_CASE
    output: Path | None = None

    @property
    def destination(self) -> Path | None:
        """Where the figures go; a quick or partial run never replaces the suite's own file."""
        whole = not self.quick and self.case == EVERY_CASE
        return self.output or (RESULTS / f"{self.suite}.json" if whole else None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one suite. Returns 1 for a wrong result and, with --check, for a missed target; else 0."""
    options = Options(**vars(_parser().parse_args(arguments)))
    entry = SUITES[options.suite]
    root = MEMORY_DISK if entry.in_memory and MEMORY_DISK.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="gliofed-bench-", dir=root) as folder:
        return run_suite(entry.make(Path(folder), options.quick), QUICK if options.quick else FULL, options)


def run_suite(suite: Suite, budget: Budget, options: Options) -> int:
    """Measure the cases asked for, print them, write them, judge them."""
    display = Display(terminal=False)
    machine = describe_machine(suite.inputs)
    display.step(f"suite `{options.suite}`: {suite.inputs}")
    chosen = (case for case in suite.cases if fnmatch(case.name, options.case))
    rows = [row for case in chosen for row in _run_aloud(case, budget, display)]
    if not rows:
        raise SystemExit(
            f"suite {options.suite!r} has no case named {options.case!r} that can run here; leave --case out to see all"
        )
    print_table(display, title_of(machine), rows)
    if options.destination is not None:
        write_json(options.destination, machine, rows)
        display.say(f"\nfigures  {options.destination}")
    wrong = any(row.complaint is not None for row in rows)
    return int(wrong or (options.check and any(row.misses_target for row in rows)))


def _run_aloud(case: Case | Contest | Trial, budget: Budget, display: Display) -> list[Row]:
    rows = _rows(case, budget)
    for row in rows:
        display.say(f"   {row.case}: {row.ratio:.2f} times {row.peer}")
    return rows


def _rows(case: Case | Contest | Trial, budget: Budget) -> list[Row]:
    if isinstance(case, Trial):
        return case.run(budget)
    return run_contest(case) if isinstance(case, Contest) else [run_case(case, budget)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suite", choices=sorted(SUITES))
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the time; figures are rough, no file is written"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 where a case misses its target")
    parser.add_argument(
        "--case", default=EVERY_CASE, metavar="PATTERN", help="only cases so named, for example 'jpeg*'"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the figures go instead")
    return parser


if __name__ == "__main__":
    sys.exit(main())
