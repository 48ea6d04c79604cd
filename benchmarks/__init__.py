"""How fast, against what: suites of cases that are measured and checked in one process. Run: python -m benchmarks."""
