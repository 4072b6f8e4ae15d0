# ruff: noqa: E501  (cells of notebooks)
"Runs that go on from cells that were executed once give what they give alone."
from __future__ import annotations

import json
import re
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import nbformat
import psutil
import pytest

from mlcycle.errors import NotebookRunError
from mlcycle.notebooks.execute.runner import run_notebook
from mlcycle.notebooks.sweep.runner import run_many
from mlcycle.notebooks.sweep.shared_cells import NotShared, share_cells, sharing
from mlcycle.store import inputs, runs

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernels are forked on Linux only")
PARAMETERS = {"source": "x = 1", "tags": ["parameters"]}


def shown(project: Any, run_id: str) -> list[Any]:
    "All that a run shows, without what differs between any two processes."
    nb = nbformat.reads(json.dumps(project.executed(run_id)), as_version=4)
    found = []
    for cell in nb.cells:
        for out in cell.get("outputs", []):
            text = out.text if out.output_type == "stream" else "\n".join(out.traceback) if out.output_type == "error" else json.dumps(
                {kind: data for kind, data in out.data.items() if "widget" not in kind}, sort_keys=True)
            found.append((out.output_type, re.sub(r"ipykernel_\d+/\d+|0x[0-9a-f]+", "*", text), cell.execution_count))
    return found


PREFIXES = {
    "seeded": ["import random, numpy as np", "random.seed(1); np.random.seed(1); rng = np.random.default_rng(1)\nnp.random.rand(5)"],
    "display": ["import matplotlib.pyplot as plt, pandas as pd, ipywidgets as w", "%matplotlib inline\nplt.plot([1, 2])", "pd.DataFrame({'a': [1]})", "w.IntSlider(3)"],
    "process": ["import os, sys, tempfile, logging, warnings", "logging.basicConfig(level='INFO')\nos.environ['MINE'] = '1'; os.mkdir('sub'); os.chdir('sub')",
                "folder = tempfile.TemporaryDirectory(); open(folder.name + '/f', 'w').write('kept')"],
    "magics": ["from IPython.core.magic import register_line_magic", "@register_line_magic\ndef hello(line): return 'hello ' + line", "%alias_magic hi hello"],
}
SUFFIXES = {
    "seeded": ["print(random.random(), np.random.rand(2), rng.normal(), x)"],
    "display": ["plt.plot([x, 2]); plt.title('after')", "print(plt.get_backend(), len(w.Widget.widgets) if hasattr(w.Widget, 'widgets') else 0)", "w.IntSlider(x).value"],
    "process": ["print(os.environ['MINE'], os.path.basename(os.getcwd()), open(folder.name + '/f').read(), x)", "logging.warning('still %d', x)\nprint('err', file=sys.stderr)",
                "!echo child; exit 3", "os.system('echo raw'); __import__('time').sleep(.3)"],
    "magics": ["%hello x", "%hi y", "print(In[1], len(Out))", "await __import__('asyncio').sleep(0.01)"],
}


@pytest.mark.parametrize("name", PREFIXES)
def test_as_if_executed_alone(project, name):
    "Seeds, plots, widgets, folders, variables of the environment, logging, magics: the run cannot tell."
    path = project.write(*PREFIXES[name], PARAMETERS, *SUFFIXES[name])
    with sharing(path) as (shared, reason):
        assert not reason
        twice = [run_notebook(path, {"x": 2}, shared=shared, progress=False) for _ in range(2)]
    if (project.folder / "sub").exists():
        (project.folder / "sub").rmdir()
    alone = run_notebook(path, {"x": 2}, fresh=True, progress=False)
    assert shown(project, twice[0].run) == shown(project, alone.run) == shown(project, twice[1].run)
    executed = project.executed(twice[0].run)
    marks = {cell["metadata"].get("mlcycle", {}).get("shared") for cell in executed["cells"][: len(PREFIXES[name])]}
    assert marks == {shared.digest} and "mlcycle" not in executed["cells"][-1]["metadata"]


def test_unseeded_runs_differ(project):
    "Where the shared cells set no seed, each run draws numbers of its own."
    path = project.write("import random, numpy as np\nfirst = random.random(), np.random.rand()", PARAMETERS, "print(random.random(), np.random.rand(), first)")
    with sharing(path) as (shared, _):
        one, two = (shown(project, run_notebook(path, shared=shared, progress=False).run)[-1][1].split() for _ in range(2))
    assert one[0] != two[0] and one[1] != two[1] and one[2:] == two[2:]


@pytest.mark.parametrize(("cell", "words"), [
    ("import threading, time\nthreading.Thread(target=time.sleep, args=(5,), daemon=True, name='poller').start()", "poller"),
    ("import numpy as np\nfrom sklearn.ensemble import HistGradientBoostingRegressor as H\nX = np.random.rand(4000, 5)\nH(max_iter=5).fit(X, X[:, 0])", "gomp"),
    ("import socket\ns = socket.create_connection(('127.0.0.1', PORT))", "open connection"),
    ("import asyncio\nt = asyncio.ensure_future(asyncio.sleep(60))", "asyncio"),
    ("1 / 0", "ZeroDivisionError"),
], ids=["thread", "openmp", "socket", "task", "error"])
def test_not_shared_and_why(project, cell, words):
    "What cannot be forked is not shared: the reason is said, and the runs execute all cells."
    if words == "gomp" and psutil.cpu_count() == 1:
        pytest.skip("one processor: OpenMP starts no threads")
    with socket.create_server(("127.0.0.1", 0)) as server:
        path = project.write(cell.replace("PORT", str(server.getsockname()[1])), PARAMETERS, "print(x)")
        with pytest.raises(NotShared, match=words):
            share_cells(path)
        sweep = run_many(path, {"x": [1, 2]}, jobs=1, progress=False)  # two at once have fewer threads each
    assert any(words in text for text in sweep.warnings) and sweep.status == ("failed" if words == "ZeroDivisionError" else "finished")


def test_one_that_dies_does_not_disturb_the_others(project):
    "A kill, a timeout and an error in one run leave the shared cells and the other runs as they were."
    path = project.write("import os, time\ndata = list(range(5))", PARAMETERS, "if x == 1: os.kill(os.getpid(), 9)\nif x == 2: time.sleep(60)\nif x == 3: 1 / 0\ndata.append(x)\nprint(sum(data))")

    def run(x: int) -> str:
        try:
            return shown(project, run_notebook(path, {"x": x}, shared=shared, timeout=3 if x == 2 else None, progress=False).run)[-1][1].strip()
        except NotebookRunError as e:
            return e.result.reason

    with sharing(path) as (shared, _), ThreadPoolExecutor(3) as three:
        keeper = psutil.Process(shared.checkpoint.pid)
        said = list(three.map(run, [1, 2, 3, 4, 5]))
    assert "SIGKILL" in said[0] and "longer than 3 s" in said[1] and "ZeroDivisionError" in said[2] and said[3:] == ["14", "15"]
    keeper.wait(10)


def test_a_sweep_loads_once(project):
    "The runs of a sweep share their first cells and what these log; --no-shared-prefix has each execute them."
    path = project.write("import mlcycle as mlc, numpy as np\nopen('loads', 'a').write('x')\nmlc.log_input(np.ones((2, 2)), 'data')", PARAMETERS, "mlc.log_metric('y', x * 2)")
    sweep = run_many(path, {"x": [1, 2, 3]}, jobs=2, progress=False)
    assert [row.metrics for row in sweep.rows] == [{"y": 2.0}, {"y": 4.0}, {"y": 6.0}] and (project.folder / "loads").read_text() == "x"
    digests = {each.digest for row in sweep.rows for each in inputs.listing(project.store, runs.get(project.store, row.run))}
    assert len(digests) == 1 and not sweep.warnings
    run_many(path, {"x": [1, 2]}, jobs=2, share=False, progress=False)
    assert (project.folder / "loads").read_text() == "xxx"


def test_cells_that_changed_are_executed(project):
    "Shared cells are used for the notebook that they came from, and for no other."
    path = project.write("a = 1", PARAMETERS, "print(a)")
    with sharing(path) as (shared, _):
        path = project.write("a = 2", PARAMETERS, "print(a)")
        assert shown(project, run_notebook(path, shared=shared, progress=False).run)[-1][1] == "2\n"
