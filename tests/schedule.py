"""In which order tests run, which of them share a worker, and which marker says what they cost.

A worker takes one group after the other. A file is a group, so that what a module's fixtures start is started once; a file in `SPLIT` would be too
long for that, and each of its tests is a group. The groups that take longest begin first, so that none is left alone at the end: `SECONDS` holds
what they took, rounded. A wrong number costs time only.
"""
from __future__ import annotations

from collections.abc import Iterator

import pytest
from xdist.scheduler import LoadScopeScheduling

MARKERS = {
    "kills": "processes are killed at random moments, more often with MLCYCLE_SOAK",
    "browser": "JupyterLab or a page in Chromium",
    "services": "PostgreSQL, S3 or a Dask cluster",
    "environments": "virtual environments, wheels, and copies of the whole tree: its notebooks, its documentation, its export",
    "benchmarks": "what is measured with --benchmark-enable, run once to see that it works",
}
FOLDERS = {"browser": ("tests/browser/",), "benchmarks": ("tests/benchmarks/",),
           "kills": ("tests/notebooks/test_sigkill.py", "tests/tune/test_durability.py", "tests/store/test_faults.py::test_sigkill"),
           "environments": ("tests/test_package.py::test_what", "tests/test_package.py::test_metadata", "tests/test_package.py::test_installs",
                            "tests/test_notebooks.py::test_every_cell", "tests/test_notebooks.py::test_export",
                            "tests/docs/test_site.py::test_documentation")}
FIXTURES = {"browser": {"lab"}, "services": {"s3_url", "team", "cluster", "calm_cluster"}, "environments": {"built", "index"}}
SERVICES = {"postgresql": "services", "s3": "services", "chromium": "browser"}

SPLIT = {"tests/test_notebooks.py", "tests/docs/test_site.py", "tests/notebooks/test_reproduce.py", "tests/tune/test_durability.py"}
SECONDS = {  # of a whole run with three workers on two cores, lowered where less is done since
    "tests/browser/test_study_view.py": 190, "tests/notebooks/test_forked_kernels.py": 140, "tests/tune/test_engines.py": 115,
    "tests/browser/test_contrast.py": 110, "tests/notebooks/test_like_papermill.py": 85, "tests/browser/test_pages.py": 70,
    "tests/notebooks/test_sigkill.py": 85, "tests/tune/test_study.py": 85, "tests/browser/test_runs_table.py": 60,
    "tests/notebooks/test_waiting.py": 110, "tests/executors/test_dask.py": 80, "tests/store/test_conformance.py": 80,
    "tests/notebooks/test_shared_cells.py": 70, "tests/browser/test_live_run.py": 50, "tests/notebooks/test_following.py": 65,
    "tests/ui/test_cli.py": 60, "tests/notebooks/test_resume.py": 55, "tests/executors/test_monthly.py": 50, "tests/docs/test_readme.py": 50,
    "tests/notebooks/test_outcomes.py": 45, "tests/docs/test_site.py::test_documentation_build_processes_every_notebook": 45,
    "tests/store/test_blobs.py": 45, "tests/tune/test_durability.py::test_random_kills[0-function-grid-2]": 40,
    "tests/tune/test_durability.py::test_random_kills[0-notebook-tpe-2]": 40, "tests/test_notebooks.py::test_every_cell_runs[registry]": 40,
    "tests/test_notebooks.py::test_every_cell_runs[ui/commands]": 40, "tests/tune/test_durability.py::test_random_kills[0-notebook-grid-1]": 40,
    "tests/ui/test_tune.py": 40, "tests/test_notebooks.py::test_every_cell_runs[store]": 40,
    "tests/test_notebooks.py::test_every_cell_runs[tune]": 35, "tests/tune/test_durability.py::test_random_kills[0-function-tpe-1]": 35,
    "tests/store/test_restart.py": 35, "tests/autolog/test_sklearn.py": 35, "tests/test_notebooks.py::test_every_cell_runs[ui/widgets]": 35,
    "tests/test_notebooks.py::test_every_cell_runs[track/autolog]": 35, "tests/notebooks/test_papermill.py": 30,
    "tests/tune/test_samplers_compared.py": 30, "tests/store/test_faults.py": 30,
    "tests/test_notebooks.py::test_every_cell_runs[notebooks/warm]": 30, "tests/registry/test_malicious_files.py": 30,
    "tests/autolog/test_every_estimator.py": 25, "tests/test_notebooks.py::test_every_cell_runs[notebooks/sweep]": 25,
    "tests/test_notebooks.py::test_every_cell_runs[.]": 25, "tests/docs/test_outputs.py": 25, "tests/benchmarks/test_kernels.py": 25,
    "tests/registry/test_flavours.py": 100, "tests/registry/test_compiled.py": 90, "tests/registry/test_hostile_flavours.py": 70,
    "tests/serve/test_serving.py": 80, "tests/serve/test_openapi.py": 40, "tests/serve/test_tables.py": 30, "tests/serve/test_rows.py": 20,
    "tests/test_notebooks.py::test_every_cell_runs[serve]": 50, "tests/test_notebooks.py::test_every_cell_runs[registry/compiled]": 40,
    "tests/tune/test_space.py": 25, "tests/track/test_current.py": 20, "tests/ui/test_team.py": 20, "tests/executors/test_local.py": 20,
    "tests/test_notebooks.py::test_every_cell_runs[registry/flavours]": 20, "tests/browser/test_magics.py": 20,
}
LONG = ("tests/tune/test_durability.py", "tests/test_notebooks.py::test_every_cell_runs")  # half a minute, where `SECONDS` knows no better


def markers(item: pytest.Item) -> Iterator[str]:
    "What a test costs, by its place, its fixtures and its services."
    yield from (name for name, places in FOLDERS.items() if item.nodeid.startswith(places))
    yield from (name for name, fixtures in FIXTURES.items() if fixtures & set(getattr(item, "fixturenames", ())))
    yield from (SERVICES[service] for mark in item.iter_markers("needs") for service in mark.args if service in SERVICES)
    if getattr(item, "callspec", None) and item.callspec.params.get("database_url") == "postgresql":
        yield "services"


def group(nodeid: str) -> str:
    "What is to run in one process, one after the other."
    place = nodeid.partition("::")[0]
    return nodeid if place in SPLIT else place


class GroupScheduling(LoadScopeScheduling):
    "pytest-xdist's scheduler, with the groups from here. (Its own `loadgroup` writes them into node ids, which pytest 9.2 does not let it.)"

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


def arrange(items: list[pytest.Item]) -> None:
    "Mark all tests; the longest groups first."
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        for name in dict.fromkeys(markers(item)):
            item.add_marker(name)
        groups.setdefault(group(item.nodeid), []).append(item)
    longest = sorted(groups, key=lambda name: -SECONDS.get(name, 30 if name.startswith(LONG) else len(groups[name])))
    items[:] = [item for name in longest for item in groups[name]]
