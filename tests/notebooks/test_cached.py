"`--cached`: the same is not run twice, and whatever could make a difference is run. Real runs, real files."
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from mlcycle.errors import NotebookRunError
from mlcycle.notebooks.execute.cached import find_same
from mlcycle.notebooks.execute.runner import run_notebook
from mlcycle.notebooks.record.result import NotebookRun
from mlcycle.store import fingerprints, runs
from mlcycle.store.connect import Store

TRAIN = """import helpers, mlcycle as mlc
mlc.log_input('rows.csv')
mlc.log_metric('loss', helpers.loss(lr))"""


@pytest.fixture
def train(project):
    "A notebook with a parameter, a module of its own, and a file that it reads; a function that runs it with `cached`."
    (project.folder / "helpers.py").write_text("def loss(lr): return lr / 2\n")
    (project.folder / "rows.csv").write_text("a,b\n1,2\n")
    project.write({"source": "lr = 0.1", "tags": ["parameters"]}, TRAIN)

    def run(lr: float = 0.1, **options) -> NotebookRun:
        return run_notebook("train.ipynb", {"lr": lr}, cached=True, **options)

    return run


def edit(path: Path, change) -> None:
    "Change a notebook file."
    nb = nbformat.read(path, 4)
    change(nb)
    nbformat.write(nb, path)


def test_only_the_same_is_returned(project, train):
    "Prose, outputs, ids and cells that no run executes make no difference; code, a parameter, an imported module and data do, each by itself."
    notebook = project.folder / "train.ipynb"
    first = train()
    assert not first.cached and first.metrics == {"loss": 0.05}

    def dress(nb) -> None:
        nb.cells.insert(0, nbformat.v4.new_markdown_cell("# Title"))
        nb.cells.append(nbformat.v4.new_code_cell("raise ValueError('a plot')", metadata={"tags": ["only-interactive"]}))
        nb.cells[2].outputs = [nbformat.v4.new_output("stream", name="stdout", text="of yesterday")]
        nb.cells[2]["id"] = "another"

    edit(notebook, dress)
    again = train()
    assert (again.cached, again.run, again.metrics, again.params, again.warnings) == (True, first.run, first.metrics, {"lr": 0.1}, ())
    assert not train(0.2).cached
    other = train(experiment="other")  # there is none in that experiment
    assert not other.cached and train(experiment="other").run == other.run

    (project.folder / "helpers.py").write_text("def loss(lr): return lr / 4\n")
    changed = train()
    assert not changed.cached and changed.metrics == {"loss": 0.025} and train().run == changed.run

    (project.folder / "rows.csv").write_text("a,b\n1,3\n")
    fresh = train()
    assert not fresh.cached and fresh.warnings == (f"Run {changed.run[:8]} had the same code, parameters and environment, but "
                                                   f"{project.folder / 'rows.csv'} has changed.",)
    (project.folder / "rows.csv").write_text("a,b\n1,2\n")
    assert train().run == changed.run  # the data is as that run read it
    refreshed = train(refresh=True)
    assert not refreshed.cached and train().run == refreshed.run
    assert len(project.runs()) == 6


def test_what_cannot_be_known_is_run_and_said(project, monkeypatch):
    "Data in memory, a secret, a module that is not found, a run that failed: each is run, and the first three say why."
    monkeypatch.setenv("KEY", "hf_0123456789")
    project.write({"source": "key = ''", "tags": ["parameters"]},
                  "import mlcycle as mlc, pandas as pd\nmlc.log_input(pd.DataFrame({'a': [1]}), 'frame')", name="memory.ipynb")
    first = run_notebook("memory.ipynb", cached=True)
    assert first.warnings == ()
    again = run_notebook("memory.ipynb", cached=True)
    assert not again.cached and "input data cannot be compared: it was data in memory" in again.warnings[0]
    again = run_notebook("memory.ipynb", secrets={"key": "env:KEY"}, cached=True)
    assert "it takes secrets (key), whose values are recorded nowhere" in again.warnings[0]
    project.write("import sys\nsys.modules['made_up'] = sys\nimport made_up\nraise ValueError('no')", name="odd.ipynb")
    for _ in range(2):
        with pytest.raises(NotebookRunError) as error:
            run_notebook("odd.ipynb", cached=True)
        assert "the module made_up, which it imports, was not found" in error.value.result.warnings[0]
    assert len(project.runs()) == 5


def test_cached_on_the_command_line(project, train):
    "One line of JSON that says so; the executed notebook where it is asked for; an installed distribution more, and it is run."
    def call(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([sys.executable, "-m", "mlcycle", "run", "train.ipynb", *words], cwd=project.folder, text=True, capture_output=True,
                              env=project.environment(**env), timeout=120)
        assert done.returncode == 0, done.stderr
        return done

    first = json.loads(call("--cached", "--json").stdout)
    assert first["cached"] is False
    again = json.loads(call("--cached", "--json", "--out", "out.ipynb").stdout)
    assert (again["cached"], again["run"], again["metrics"]) == (True, first["run"], first["metrics"])
    kept = json.loads((project.folder / "out.ipynb").read_text())
    assert kept["metadata"]["mlcycle"]["run"] == first["run"]
    assert f"train.ipynb was not run: run {first['run'][:8]} was the same" in call("--cached").stdout
    installed = project.folder / "more"
    (installed / "extra-1.0.dist-info").mkdir(parents=True)
    (installed / "extra-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n")
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(installed)])
    assert json.loads(call("--cached", "--json", PYTHONPATH=path).stdout)["cached"] is False


def test_looking_is_fast_among_many(store: Store, tmp_path: Path):
    "Answered by an index, however many runs there are."
    import sqlalchemy as sa

    from mlcycle.store import schema

    run = runs.create(store, "demo", kind="notebook")
    fingerprints.put(store, run, "f" * 64)
    runs.finish(store, run)
    row = {"experiment": "demo", "kind": "notebook", "status": "finished", "started": 0.0, "actor": "me"}
    with store.db.write() as con:
        con.execute(sa.insert(schema.runs), [{**row, "pk": 1000 + i, "id": f"{i:016x}", "name": f"r{i}"} for i in range(30_000)])
        con.execute(sa.insert(schema.fingerprints), [{"run": 1000 + i, "digest": f"{i:064x}"} for i in range(30_000)])
    asked: list[tuple[str, tuple]] = []
    sa.event.listen(store.db.engine, "before_cursor_execute", lambda con, cursor, sql, values, *rest: asked.append((sql, values)))
    assert find_same(store, "f" * 64, "demo", tmp_path).run.id == run.id
    explain = "EXPLAIN QUERY PLAN" if store.db.sqlite else "EXPLAIN"
    with store.db.read() as con:
        plans = [step for sql, values in list(asked) if sql.startswith("SELECT") for *_, step in con.exec_driver_sql(f"{explain} {sql}", values)]
    assert len(plans) >= 2 and not [step for step in plans if step.startswith(("SCAN", "Seq Scan"))], plans
