"""The tests marked `fault`: how often each fault is injected, and the table of the results in docs/reliability.md."""

from collections import Counter

import pytest

from drilldown.hardware import processor_name
from drilldown.steps import ROOT

TABLE = ROOT / "docs" / "reliability.md"
MARK = "<!-- measured: `make faults` writes what follows -->"
HEAD = "| fault | how it is injected | what is promised | tried | held |\n|---|---|---|---:|---:|\n"


def add_option(parser):
    parser.addoption(
        "--tries",
        type=int,
        default=0,
        help="inject random faults this often, and also the faults marked `long`",
    )
    parser.addoption("--write-table", action="store_true", help="write the results to docs/reliability.md")


class FaultTable:
    """A pytest plugin that counts the tests marked fault(kind, injected, promised), one row of the table per mark."""

    def __init__(self, config):
        self.tries = config.getoption("--tries")
        self.writes = config.getoption("--write-table") and not hasattr(config, "workerinput")
        self.is_partial = config.getoption("keyword") or config.args_source != config.ArgsSource.TESTPATHS
        self.counts = Counter()

    def pytest_generate_tests(self, metafunc):
        """Repeat a test with the argument `attempt`, the seed of its random numbers, as often as `--tries` says."""
        if "attempt" in metafunc.fixturenames:
            metafunc.parametrize("attempt", range(self.tries or 1))

    def pytest_collection_modifyitems(self, config, items):
        if not self.tries:
            long = [item for item in items if item.get_closest_marker("long")]
            config.hook.pytest_deselected(items=long)
            items[:] = [item for item in items if item not in long]

    def pytest_runtest_setup(self, item):
        if marker := item.get_closest_marker("fault"):
            item.user_properties.append(("fault", list(marker.args)))

    def pytest_runtest_logreport(self, report):
        properties = dict(report.user_properties)
        if "fault" in properties and (report.when == "call" or (report.when == "setup" and not report.passed)):
            times = properties.get("times", 1)  # a test may inject several: record_property("times", n)
            row = tuple(properties["fault"])
            self.counts[row, "tried"] += 0 if report.skipped else times
            self.counts[row, "held"] += times * report.passed

    def pytest_sessionfinish(self, exitstatus):
        if self.writes and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            import torch

            before, _, table = TABLE.read_text().partition(MARK)
            rows = self.earlier_rows(table) if self.is_partial else {}
            rows |= {row: (self.counts[row, "tried"], self.counts[row, "held"]) for row, _ in self.counts}
            lines = [f"| {' | '.join(map(str, (*row, *rows[row])))} |\n" for row in sorted(rows)]
            measured = f"Measured on {processor_name(torch.device('cpu'))}.\n\n"
            TABLE.write_text(f"{before}{MARK}\n\n{measured}{HEAD}{''.join(lines)}")

    @staticmethod
    def earlier_rows(table):
        """The rows of an earlier run: a run of some of the tests replaces theirs only."""
        lines = (line.strip("| ").split(" | ") for line in table.partition(HEAD)[2].splitlines())
        return {(fault, injected, promised): counts for fault, injected, promised, *counts in lines}
