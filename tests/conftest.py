"Fixtures for every test: isolation from the user's settings, stores, and real services that skip (or, with CI=true, fail) where they are missing."
from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlcycle.iri_grammar import defer_grammar
from tests import schedule
from tests.services import SERVICES, Missing

if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):  # the tests start thousands of processes: each would compile all that it imports
    sys.dont_write_bytecode = False
defer_grammar()
SOAK = int(os.environ.get("MLCYCLE_SOAK") or 1)  # how often whatever kills at random is repeated: 20 for a night
_running: dict[str, Any] = {}


def _missing(message: str) -> None:
    "Skip; where CI=true everything is meant to be installed, so fail."
    (pytest.fail if os.environ.get("CI", "").lower() in ("true", "1", "yes") else pytest.skip)(message)


def need(
    name: str,  # One of SERVICES
) -> Any:       # The service, started once a session
    "A service, or a skip that says why there is none. With CI=true in the environment a missing service is a failure."
    if name not in _running:
        try:
            _running[name] = SERVICES[name]()
        except Missing as e:
            _running[name] = e
    if isinstance(missing := _running[name], Missing):
        _missing(f"needs {name}: {missing}")
    return _running[name]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*names): services that the test cannot run without: " + ", ".join(SERVICES))
    for name, what in schedule.MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {what}")
    if not hasattr(config, "workerinput"):
        # The first process of a machine that imports it makes its list of fonts; a slow one writes of it into a cell's output
        importlib.import_module("matplotlib.font_manager")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    "A test that asks for `soak` is run `MLCYCLE_SOAK` times; the number seeds its random moments."
    if "soak" in metafunc.fixturenames:
        metafunc.parametrize("soak", range(SOAK))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    "Before `-m` chooses."
    schedule.arrange(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> schedule.GroupScheduling:
    "Whatever `--dist` says."
    return schedule.GroupScheduling(config, log)


def pytest_unconfigure(config: pytest.Config) -> None:
    for service in _running.values():
        if not isinstance(service, Missing):
            service.stop()
    _running.clear()


@pytest.fixture(autouse=True)
def isolated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    "Every test works in its own empty folder, and none of the user's settings reach it."
    for mark in request.node.iter_markers("needs"):
        for name in mark.args:
            need(name)
    for name in [name for name in os.environ if name.startswith(("MLCYCLE_", "AWS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLCYCLE_WARM", "false")  # no process outlives a test that did not ask for it
    monkeypatch.chdir(tmp_path)
    yield
    if connect := sys.modules.get("mlcycle.store.connect"):
        for store in filter(None, [connect._connected, *connect._opened.values()]):
            store.close()
        connect._connected = None
        connect._opened.clear()


@pytest.fixture(scope="session")
def needs() -> Callable[..., None]:
    "`needs('a small disk', available, how)`, for what is no service of `tests.services`."

    def check(
        what: str,          # What the test cannot do without
        available: object,  # True when it is there
        how: str = "",      # How to get it
    ) -> None:
        if not available:
            _missing(f"needs {what}" + (f": {how}" if how else ""))

    return check


@pytest.fixture
def s3_url(monkeypatch: pytest.MonkeyPatch) -> str:  # fsspec URL
    "An empty place in S3, which this process and its children can reach."
    server = need("s3")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server.new_bucket()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:  # SQLAlchemy URL
    "The address of an empty database, of each kind."
    return need("postgresql").new_database() if request.param == "postgresql" else f"sqlite:///{tmp_path}/store/mlcycle.db"


@pytest.fixture
def store(database_url: str, tmp_path: Path) -> Iterator[Any]:  # Store
    "An open, empty store on each database, with local artifacts."
    from mlcycle.store.connect import open_store

    with open_store(database_url, tmp_path / "artifacts") as opened:
        yield opened
