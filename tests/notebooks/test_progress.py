"What a person sees of a run, in a terminal and in a notebook."
from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys

from mlcycle.notebooks.execute.runner import run_notebook
from mlcycle.store import runs

RUN = "from mlcycle.notebooks.execute.runner import run_notebook\nrun_notebook('train.ipynb')"


def on_terminal(project) -> str:
    "Run the project's notebook with a terminal as standard error; what was drawn, without control sequences."
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", RUN], cwd=project.folder, env=project.environment(TERM="xterm", COLUMNS="120"), stderr=theirs)
    os.close(theirs)
    drawn = b""
    try:
        while piece := os.read(ours, 65536):
            drawn += piece
    except OSError:  # the other end was closed
        pass
    os.close(ours)
    assert process.wait(60) == 0, drawn
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode())


def test_terminal_bar_knows_the_last_run(project):
    "Cell number, heading and elapsed time; from the second run on also the time that is left."
    project.write("# Load the data", "x = 1", "# Train", "import time; time.sleep(2)")
    first = on_terminal(project)
    assert "cell 2/2 · Train" in first and "left" not in first and "finished after 2 of 2 cells" in first
    assert re.search(r"cell 2/2 · Train, 0:0\d, 0:0\d left", on_terminal(project))


def test_quiet_without_a_terminal(project):
    "Nothing is drawn into a log file or a pipe."
    project.write("print('hello')")
    out, err = project.start(RUN).communicate(timeout=60)
    assert (out, err) == ("", "")


def test_notebook_in_a_notebook(project):
    "Called in a notebook, a run is part of that notebook's run, and its progress stays as one readable line."
    project.write("# Inner work", "y = 2", name="inner.ipynb")
    done = run_notebook(project.write("import mlcycle as mlc\ndone = mlc.run_notebook('inner.ipynb', name='inner')", "done", name="outer.ipynb"))
    inner = next(run for run in project.runs() if run.name == "inner")
    assert inner.status == "finished" and inner.parent == done.run and runs.get(project.store, done.run).status == "finished"
    bar, shown = (cell["outputs"] for cell in project.executed(done.run)["cells"])
    assert "".join(bar[0]["data"]["text/plain"]).startswith("inner.ipynb: finished after 1 of 1 cells")
    assert "<progress" in "".join(bar[0]["data"]["text/html"]) and len(bar) == 1
    assert "inner.ipynb finished in" in "".join(shown[0]["data"]["text/html"]) and "inner" in json.dumps(shown[0]["data"]["text/plain"])
