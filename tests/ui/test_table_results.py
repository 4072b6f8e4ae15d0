"A live result where nobody sits: executed by a program, in a terminal, asked for JSON."
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from mlcycle.store.connect import open_store
from mlcycle.track.begin import start


def seed(folder: Path) -> None:
    (folder / ".mlcycle").mkdir()
    with open_store(folder / ".mlcycle/mlcycle.db", folder / ".mlcycle/artifacts") as store:
        for name, lr in (("slow", 0.01), ("fast", 0.3)):
            active = start(name, "churn", params={"lr": lr}, store=store, capture=False)
            for step in range(5):
                active.log_metric("loss", 1 / (1 + lr * step))
            active.finish()


def test_executed_notebook_holds_tables_and_pictures(tmp_path: Path) -> None:
    "Executed without a person, `%mlcycle runs` and `compare` leave HTML with pictures and text, no widget that nobody can find; export shows it."
    seed(tmp_path)
    cells = ["%load_ext mlcycle", "%mlcycle runs", "%mlcycle compare slow fast",
             "from mlcycle.ui.widgets.runs_table import RunsTable\nRunsTable(size=1)"]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(nb, resources={"metadata": {"path": str(tmp_path)}}, kernel_name="python3").execute()
    shown = [cell.outputs[0].data for cell in nb.cells[1:]]
    assert all(set(data) == {"text/plain", "text/html"} for data in shown)
    assert "slow" in shown[0]["text/plain"] and "≠ 0.3" in shown[1]["text/plain"] and "1–1 of 2 runs" in shown[2]["text/plain"]
    assert shown[1]["text/html"].count("src='data:image/svg+xml;base64,") == 2

    from nbconvert import HTMLExporter

    page = HTMLExporter().from_notebook_node(nb)[0]
    assert page.count("data:image/svg+xml;base64,") >= 2 and "widget-view" not in page


def test_terminal_pays_nothing_for_the_widget(tmp_path: Path) -> None:
    "`mlcycle runs` and `compare` print text and JSON as any command, and load no widget library."
    seed(tmp_path)
    script = ("import sys\nfrom mlcycle.ui.tree import Face, invoke\nresult = invoke(sys.argv[1:], Face())\n"
              "print(result.json())\nassert not {'anywidget', 'ipywidgets'} & set(sys.modules), 'a widget library was loaded'")
    for words, seen in ((["runs"], "slow"), (["compare", "slow", "fast"], "params")):
        done = subprocess.run([sys.executable, "-c", script, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert seen in json.dumps(json.loads(done.stdout))
