"Projects with notebooks, clusters of real worker processes, and a team's store."
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from mlcycle.store.connect import Store, open_store
from tests.conftest import need
from tests.notebooks.conftest import Project, project, wait_for  # noqa: F401
from tests.services import free_port, wait_until


class Cluster:
    "A Dask scheduler and its workers, each a process of its own on free ports."

    def __init__(self, folder: Path, workers: int, environment: dict[str, str], nanny: bool = False):
        self.folder, self.environment, self.nanny, self.count = folder, environment, nanny, 0
        self.port, self.processes = free_port(), []
        folder.mkdir()
        self.scheduler = self._start("dask_scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard")
        wait_until(lambda: "Scheduler at:" in (folder / "0.log").read_text(), self.scheduler, folder / "0.log")
        self.workers = [self.add() for _ in range(workers)]
        for i, worker in enumerate(self.workers, 1):
            wait_until(lambda i=i: "Registered to:" in (folder / f"{i}.log").read_text(), worker, folder / f"{i}.log")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def executor(self) -> str:
        "What `--executor` is given."
        return f"dask://{self.address}"

    def _start(self, module: str, *words: str) -> subprocess.Popen:
        log = (self.folder / f"{len(self.processes)}.log").open("wb")
        own = {name: value for name, value in os.environ.items() if not name.startswith("MLCYCLE_")}  # none of the user's settings
        process = subprocess.Popen([sys.executable, "-m", f"distributed.cli.{module}", *words], stdout=log, stderr=log, cwd=self.folder,
                                   env={**own, **self.environment})
        log.close()
        self.processes.append(process)
        return process

    def add(self) -> subprocess.Popen:
        "Start one more worker."
        self.count += 1
        return self._start("dask_worker", f"tcp://{self.address}", "--nthreads", "1", "--no-dashboard", "--name", f"w{self.count}",
                           "--local-directory", str(self.folder), "--nanny" if self.nanny else "--no-nanny")

    def stop(self) -> None:
        everybody = [below for process in self.processes if process.poll() is None for below in psutil.Process(process.pid).children(recursive=True)]
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        _, left = psutil.wait_procs(everybody, timeout=10)
        for process in left:
            process.kill()


@pytest.fixture
def cluster(tmp_path: Path, needs: Callable[..., None]) -> Iterator[Callable[..., Cluster]]:
    "`cluster(workers=2)`: a cluster that ends with the test."
    needs("dask.distributed", find_spec("distributed"), "pip install 'mlcycle[dask]'")
    made: list[Cluster] = []

    def make(workers: int = 2, **environment: str) -> Cluster:
        made.append(Cluster(tmp_path / f"cluster-{len(made)}", workers, environment))
        return made[-1]

    yield make
    for each in made:
        each.stop()


@pytest.fixture(scope="module")
def calm_cluster(tmp_path_factory: pytest.TempPathFactory, needs: Callable[..., None]) -> Iterator[Cluster]:
    "Two workers for all tests of a module that end neither them nor the scheduler."
    needs("dask.distributed", find_spec("distributed"), "pip install 'mlcycle[dask]'")
    made = Cluster(tmp_path_factory.mktemp("calm") / "cluster", 2, {})
    yield made
    made.stop()


@pytest.fixture
def team(s3_url: str) -> Iterator[Store]:
    "A store that other machines reach: PostgreSQL and S3."
    with open_store(need("postgresql").new_database(), s3_url) as store:
        yield store
