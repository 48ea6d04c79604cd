"""python -m benchmarks SUITE: measure a suite, print its table, write benchmarks/results/SUITE.json."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from benchmarks import kernels
from benchmarks.case import Case, Suite
from benchmarks.machine import describe_machine
from benchmarks.measure import FULL, QUICK, Budget
from benchmarks.report import print_table, title_of, write_json
from benchmarks.row import Row, run_case
from service.progress import Display

RESULTS = Path(__file__).parent / "results"
MEMORY_DISK = Path("/dev/shm")
SUITES: dict[str, Callable[[Path], Suite]] = {"kernels": kernels.suite}
EVERY_CASE = "*"


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
    # Files that a case reads lie in memory: a disk is not what is measured.
    root = MEMORY_DISK if MEMORY_DISK.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="gliofed-bench-", dir=root) as folder:
        return run_suite(SUITES[options.suite](Path(folder)), QUICK if options.quick else FULL, options)


def run_suite(suite: Suite, budget: Budget, options: Options) -> int:
    """Measure the cases asked for, print them, write them, judge them."""
    display = Display(terminal=False)
    machine = describe_machine(suite.inputs)
    display.step(f"suite `{options.suite}`: {suite.inputs}")
    rows = [_run_aloud(case, budget, display) for case in suite.cases if fnmatch(case.name, options.case)]
    if not rows:
        raise SystemExit(
            f"suite {options.suite!r} has no case named {options.case!r}; leave --case out to see all names"
        )
    print_table(display, title_of(machine), rows)
    if options.destination is not None:
        write_json(options.destination, machine, rows)
        display.say(f"\nfigures  {options.destination}")
    wrong = any(row.complaint is not None for row in rows)
    return int(wrong or (options.check and any(row.below_target for row in rows)))


def _run_aloud(case: Case, budget: Budget, display: Display) -> Row:
    row = run_case(case, budget)
    display.say(f"   {row.case}: {row.ratio:.2f} times {row.peer}")
    return row


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
