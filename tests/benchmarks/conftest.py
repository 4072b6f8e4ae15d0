"Measuring side by side: a round of the baseline before each round of ours, medians of both, and a table at the end."
from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pytest

from mlcycle.store.connect import Store, open_store

# MLflow is no service that the tests need: where it is not installed, there is nothing to compare with.
collect_ignore = [] if os.environ.get("MLFLOW_PYTHON") or find_spec("mlflow") else ["test_mlflow.py"]
_rows: list[tuple[str, ...]] = []
_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6}


@dataclass
class Race:
    "One measurement: `ours` against the raw way to do the same, and against its bound."
    benchmark: Any  # pytest-benchmark's fixture

    @property
    def timed(self) -> bool:
        "Are times wanted, or is each body only run once to see that it works?"
        return self.benchmark.enabled

    def size(self, full: int, small: int) -> int:
        "How much to do: `full` when times are wanted."
        return full if self.timed else small

    def run(
        self,
        what: str,                                  # Name of the row
        ours: Callable[[], Any],                    # One round of ours
        raw: Callable[[], Any] | None = None,       # One round of the baseline
        *,
        rounds: int = 20,                           # How often each
        each: int = 1,                              # Operations in a round
        unit: str = "ms",                           # Unit of the times in the table
        bound: float,                               # Greatest allowed: a time in `unit`, or a ratio to the baseline
        ratio: bool = False,                        # Is the bound a ratio?
        less: bool = False,                         # Take the baseline's time off ours: what is on top of it?
        before: Callable[[], Any] | None = None,    # Done before each round, not timed
    ) -> None:
        "Time rounds in turn and note the medians."
        times: list[float] = []

        def baseline() -> None:
            if before:
                before()
            if raw:
                begin = time.perf_counter()
                raw()
                times.append(time.perf_counter() - begin)

        self.benchmark.pedantic(ours, setup=baseline, rounds=rounds if self.timed else 1, iterations=1)
        if not self.timed:
            return
        scale = _UNITS[unit] / each
        mine = statistics.median(self.benchmark.stats.stats.data) * scale
        theirs = statistics.median(times) * scale if raw else None
        judged = mine / theirs if ratio else mine - theirs if less else mine
        self.benchmark.extra_info.update(raw=theirs, bound=bound, judged=judged)
        self.note(what, f"{mine:.3g} {unit}", f"{theirs:.3g} {unit}" if raw else "", f"{judged:.2f}" + (" x" if ratio else f" {unit}"),
                  f"<= {bound:g}" + (" x" if ratio else f" {unit}"), judged <= bound)

    def note(self, what: str, ours: str, raw: str, judged: str, bound: str, good: bool | None) -> None:
        "Add a row to the table."
        _rows.append((what, ours, raw, judged, bound, {True: "ok", False: "MISSED", None: ""}[good]))


@pytest.fixture
def race(benchmark: Any) -> Race:
    "Measures ours against the raw way."
    return Race(benchmark)


@pytest.fixture
def local(tmp_path: Any) -> Any:  # Store
    "An open store of the default kind."
    with open_store(tmp_path / "local" / "mlcycle.db") as store:
        assert isinstance(store, Store)
        yield store


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _rows:
        rows = [("what", "ours", "raw", "judged", "bound", ""), *_rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        terminalreporter.section("mlcycle side by side (medians, rounds in turn)")
        for row in rows:
            terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
