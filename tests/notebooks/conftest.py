"Real notebooks, run in real kernels, kept in a store of their own."
from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlcycle.entities import Run
from mlcycle.store import artifacts, query, runs
from mlcycle.store.connect import Store, connect


class Project:
    "A folder with notebooks, and the store of their runs."

    def __init__(self, folder: Path):
        self.folder = folder
        self.database = folder / "mlcycle.db"
        self.store: Store = connect(self.database)
        self.processes: list[subprocess.Popen[str]] = []

    def write(self, *cells: str | dict[str, Any], name: str = "train.ipynb", **metadata: Any) -> Path:
        "Write a notebook: a text is a code cell, a text that begins with `# ` a heading, a dict a code cell with tags."
        import nbformat

        nodes = []
        for i, cell in enumerate(cells, 1):
            if isinstance(cell, dict):
                nodes.append(nbformat.v4.new_code_cell(cell["source"], id=f"c{i}", metadata={"tags": cell["tags"]}))
            elif cell.startswith("# "):
                nodes.append(nbformat.v4.new_markdown_cell(cell, id=f"c{i}"))
            else:
                nodes.append(nbformat.v4.new_code_cell(cell, id=f"c{i}"))
        path = self.folder / name
        nbformat.write(nbformat.v4.new_notebook(cells=nodes, metadata=metadata), path)
        return path

    def runs(self) -> list[Run]:
        "All runs, newest first."
        return [runs.to_run(row) for row in query.page(self.store)]

    def executed(self, run_id: str) -> dict[str, Any]:
        "The executed notebook that a run keeps."
        return json.loads(self.artifact(run_id, "notebook/executed.ipynb"))

    def artifact(self, run_id: str, name: str) -> bytes:
        "What a run keeps under a name."
        run = runs.get(self.store, run_id)
        return self.store.blobs.read(artifacts.get(self.store, run, name).digest)

    def environment(self, **more: str) -> dict[str, str]:
        "For a process that works with the same store."
        return {**os.environ, "MLCYCLE_STORE": str(self.database), **more}

    def start(self, code: str, **more: str) -> subprocess.Popen[str]:
        "Start Python code in the project's folder."
        self.processes.append(subprocess.Popen([sys.executable, "-c", code], cwd=self.folder, env=self.environment(**more), text=True,
                                               stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return self.processes[-1]

    def papermill(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        "Papermill's own command line, with this engine."
        return subprocess.run([sys.executable, "-m", "papermill", *arguments, "--engine", "mlcycle"], cwd=self.folder, text=True,
                              env=self.environment(**more), capture_output=True, timeout=120)


@pytest.fixture
def project(tmp_path: Path):
    "An empty project; the process goes back to its own store afterwards."
    from mlcycle.store import connect as module

    before = module._connected
    made = Project(tmp_path)
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.kill()
            process.communicate()
    module._connected = before
    made.store.close()


@pytest.fixture
def wait_for() -> Callable[..., Any]:
    "`wait_for(condition)`: poll until it is true, and give its value. The time only keeps a broken test from hanging."

    def wait(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := condition():
                return found
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s")

    return wait


@pytest.fixture
def kernels() -> Callable[[int], list[psutil.Process]]:
    "`kernels(pid)`: the kernels that a process has started."

    def find(pid: int) -> list[psutil.Process]:
        try:
            below = psutil.Process(pid).children(recursive=True)
            warm = {p.pid for p in below if "warm.server" in " ".join(p.cmdline())}
            return [p for p in below if "ipykernel_launcher" in " ".join(p.cmdline()) or p.ppid() in warm]
        except psutil.Error:
            return []

    return find
