"The README is what nbs/index.ipynb says, and what it says is true."
from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
tool = runpy.run_path(str(ROOT / ".ci" / "readme.py"))


def section(title: str) -> str:
    "The text below one heading of the README."
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def mlcycle(*words: str, folder: Path) -> str:
    "Run a command of the README as a process."
    command = [sys.executable, "-m", "mlcycle", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"mlcycle {shlex.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_readme_is_rendered() -> None:
    "README.md is written from index.ipynb and never by hand."
    assert tool["render"](tool["read"]()) == README, "README.md and nbs/index.ipynb differ: run python .ci/readme.py"


def test_outputs_are_real() -> None:
    "What the README shows below a cell is what the cell shows in a kernel, run ids and durations aside."
    stored = tool["read"]()
    assert tool["shown"](tool["execute"](stored)) == tool["shown"](stored), "run python .ci/readme.py"


def test_the_notebook_of_the_readme_is_executed_twice(tmp_path: Path) -> None:
    "\"Restart and run all\" makes a second run of each name in the same store, and every cell goes on."
    import nbformat
    from nbclient import NotebookClient

    sources = re.findall(r"```python\n(.*?)```", section("In a notebook"), re.S)
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    (tmp_path / ".mlcycle").mkdir()
    for _ in range(2):
        NotebookClient(nb, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = "".join(output.get("text", "") for cell in nb.cells for output in cell.outputs)
    assert "forest-20~1 is" in outputs and "logistic~1 is" in outputs


def test_set_up_is_two_commands() -> None:
    "The two commands are the ones that the project promises."
    assert re.findall(r"```sh\n(.*?)\n```", section("Set up"), re.S) == ["pip install . && mlcycle demo", 'pip install -e ".[dev]" && pytest']


def test_every_command_is_listed() -> None:
    "The table names every command of the tree, in its order, and no other."
    from mlcycle.ui.tree import COMMANDS

    assert re.findall(r"^\| `mlcycle (\w+)", section("In a terminal"), re.M) == list(COMMANDS)


def test_links_lead_somewhere() -> None:
    "A relative link of the README names a file of the repository."
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links and not [link for link in links if not (ROOT / link).exists()]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    "What `mlcycle demo` leaves behind, without its three runs: the sample project, and biopsy/1 as champion."
    import pandas as pd
    from sklearn.tree import DecisionTreeClassifier

    from mlcycle.registry.aliases import promote
    from mlcycle.registry.versions import register
    from mlcycle.store.connect import open_store
    from mlcycle.track.begin import start
    from mlcycle.ui.sample import write_project

    write_project(tmp_path)
    data = pd.read_csv(tmp_path / "data" / "train.csv")
    X, y = data.drop(columns="diagnosis"), data["diagnosis"]
    with open_store(tmp_path / ".mlcycle" / "mlcycle.db") as store:
        active = start("tree", "biopsies", store=store, capture=False)
        active.log_model(DecisionTreeClassifier(max_depth=3).fit(X, y), input_example=X.head())
        active.finish()
        promote(register(active.run, "biopsy", store=store).ref, store=store)
    return tmp_path


def test_terminal_commands_work(project: Path) -> None:
    "Every line of the section on the terminal, in its order, in the folder it speaks of."
    (block,) = re.findall(r"```sh\n(.*?)\n```", section("In a terminal"), re.S)
    said = {line: mlcycle(*shlex.split(line)[1:], folder=project) for line in block.splitlines()}
    assert len(said) == 10
    assert "big-forest" in said['''mlcycle runs "metrics.auc > 0.98 and params.model == 'forest'" -o -metrics.auc''']
    assert (project / "out" / "roc.png").exists() and (project / "predictions.parquet").exists()
    assert "all sound" in said["mlcycle fsck"]
