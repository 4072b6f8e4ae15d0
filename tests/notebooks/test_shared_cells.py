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
    keeper.wait(120)


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


MODULE = "import numpy as np\nimport random\n"
WAYS = {  # ways to make a generator: the expression, and how a number is drawn from it
    "default_rng": ("np.random.default_rng({})", "g.random()"), "RandomState": ("np.random.RandomState({})", "g.rand()"),
    "PCG64": ("np.random.PCG64({})", "g.random_raw()"), "MT19937": ("np.random.Generator(np.random.MT19937({}))", "g.random()"),
    "SeedSequence": ("np.random.SeedSequence({})", "g.generate_state(1)[0]"), "spawned": ("np.random.SeedSequence({}).spawn(2)[1]", "g.generate_state(1)[0]"),
    "Random": ("random.Random({})", "g.random()"), "qmc": ("__import__('scipy.stats', fromlist=['qmc']).qmc.Sobol(1, rng={})", "g.random()[0, 0]"),
}
UNSEEDED = {
    "secrets": ("__import__('secrets').randbits(60)", "g"), "urandom": ("__import__('os').urandom(8).hex()", "g"), "uuid": ("__import__('uuid').uuid4().int", "g"),
    "SystemRandom": ("__import__('secrets').SystemRandom().random()", "g"), "choice": ("np.random.choice(10**9)", "g"), "shuffle": ("random.getrandbits(60)", "g"),
    "scipy": ("__import__('scipy.stats', fromlist=['norm']).norm.rvs()", "g"), "seed of the system": ("[np.random.seed(), np.random.rand()][1]", "g"),
    "clock": ("np.random.default_rng(__import__('time').time_ns())", "g.random()"), "split": ("__import__('pandas').Series(range(10**6)).sample(1).item()", "g"),
}


def drawn(project: Any, path: Any) -> tuple[list[str], Any]:
    "What the runs of a sweep print last, and the sweep."
    sweep = run_many(path, {"x": [1, 2]}, jobs=1, progress=False)
    return [shown(project, row.run)[-1][1].strip() for row in sweep.rows], sweep


EVERY_WAY = {**{name: (make.format("None"), draw) for name, (make, draw) in WAYS.items()}, **UNSEEDED}


def test_runs_never_repeat_what_should_be_random(project):
    "Each way to be random in a cell above the parameters: runs differ as runs that are executed alone do, and the sweep says why its cells were not shared."
    for name, (make, draw) in EVERY_WAY.items():
        numbers, sweep = drawn(project, project.write(f"{MODULE}g = {make}", PARAMETERS, f"print({draw})"))
        assert numbers[0] != numbers[1], name
        assert (sweep.shared_cells["kind"], sweep.shared_cells["shared"]) == ("random", False), name
        assert "without a seed" in sweep.warnings[0] or "differs each time" in sweep.warnings[0]


def test_modules_of_the_project_never_repeat_what_should_be_random(project):
    "The same in a module that a warm process would import: above the parameters and below them."
    for i, (make, _) in enumerate(EVERY_WAY.values()):
        (project.folder / f"made_{i}.py").write_text(f"{MODULE}g = {make}\n")
    cell = "import random, numpy as np\n" + "\n".join(f"from made_{i} import g as g{i}" for i in range(len(EVERY_WAY)))
    show = "print(" + ", ".join(f"g{i}" if draw == "g" else draw.replace("g.", f"g{i}.") for i, (_, draw) in enumerate(EVERY_WAY.values())) + ")"
    for cells in ([cell, PARAMETERS, show], [PARAMETERS, cell, show], ["import numpy as np", PARAMETERS, cell, show]):
        numbers, sweep = drawn(project, project.write(*cells))
        assert [name for name, one, two in zip(EVERY_WAY, *(each.split() for each in numbers), strict=True) if one == two] == []
    assert sweep.shared_cells["shared"]


@pytest.mark.parametrize("where", ["cell", "module"])
def test_seeded_generators_are_shared_and_equal(project, where):
    "A generator with a seed gives every run the same numbers, and does not keep cells from being shared."
    ways = {**{name: (make.format("7"), draw) for name, (make, draw) in WAYS.items()},
            "sklearn": ("__import__('sklearn.model_selection').model_selection.train_test_split(range(100), random_state=3)", "sum(g.__getitem__(0))"),
            "random": ("random.seed(5) or random.random()", "random.random()"), "numpy": ("np.random.seed(5) or np.random.rand()", "np.random.rand()")}
    for i, (make, _) in enumerate(ways.values()):
        (project.folder / f"seeded_{i}.py").write_text(f"{MODULE}g = {make}\n")
    cells = [f"{MODULE}g{i} = {make}" if where == "cell" else f"import random, numpy as np\nfrom seeded_{i} import g as g{i}" for i, (make, _) in enumerate(ways.values())]
    show = "print(" + ", ".join(draw.replace("g.", f"g{i}.") for i, (_, draw) in enumerate(ways.values())) + ")"
    path = project.write(*cells, PARAMETERS, show)
    numbers, sweep = drawn(project, path)
    assert sweep.shared_cells == {"shared": True, "kind": None, "why": None} and not sweep.warnings
    alone = shown(project, run_notebook(path, fresh=True, progress=False).run)[-1][1].strip()
    assert numbers == [alone, alone]


def test_ordinary_imports_keep_their_cells_shared(project):
    "Libraries draw names, keys and default generators for themselves: none of it keeps cells from being shared, and a default generator differs in each run."
    path = project.write("import tempfile, logging, asyncio, numpy as np, pandas as pd, scipy.stats, matplotlib.pyplot as plt, ipywidgets as w",
                         "from sklearn.ensemble import RandomForestClassifier, HistGradientBoostingClassifier\nfrom sklearn.datasets import load_iris\nimport xgboost, plotly.express as px",
                         "data = load_iris(as_frame=True).frame\ntempfile.mkdtemp(); w.IntSlider(1)", "%matplotlib inline\nplt.plot([1, 2]); px.scatter(data, x='target', y='target')",
                         "from sklearn.ensemble._hist_gradient_boosting.grower import TreeGrower\ndefault = next(d for d in TreeGrower.__init__.__defaults__ if hasattr(d, 'random'))",
                         PARAMETERS, "print(default.random(), np.random.rand(), __import__('random').random(), scipy.stats.norm.rvs())")
    numbers, sweep = drawn(project, path)
    assert sweep.shared_cells["shared"] and not sweep.warnings
    assert all(one != two for one, two in zip(*(each.split() for each in numbers), strict=True))


def test_torch_without_a_seed_differs(project):
    "Weights of layers that torch initializes differ between runs; with a seed they are the same."
    pytest.importorskip("torch")
    layer = "print(torch.nn.Linear(1, 1).weight.item())"
    numbers, sweep = drawn(project, project.write("import torch", PARAMETERS, layer))
    assert numbers[0] != numbers[1] and sweep.shared_cells["shared"]
    numbers, sweep = drawn(project, project.write("import torch", "torch.manual_seed(3); torch.rand(3)", PARAMETERS, layer))
    assert numbers[0] == numbers[1] and sweep.shared_cells["shared"]
    numbers, sweep = drawn(project, project.write("import torch", "first = torch.nn.Linear(1, 1)", PARAMETERS, "print(first.weight.item())"))
    assert numbers[0] != numbers[1] and sweep.shared_cells["kind"] == "random"
