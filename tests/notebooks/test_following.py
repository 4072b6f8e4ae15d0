"What a run prints, seen from elsewhere while it goes on; and stopping it from elsewhere. Real processes, on both databases."
from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from mlcycle.entities import Run
from mlcycle.notebooks.follow.logs import printed
from mlcycle.store import events, live, query, runs, schema
from mlcycle.store.connect import Store
from mlcycle.track.stopping import stop_run

STEPS = """import os, sys, time
for i in range(25):
    print('step', i, flush=True)
    while i == 3 and not os.path.exists('go'):
        time.sleep(0.05)
print('to stderr', file=sys.stderr)
'the result'"""


class Shared:
    "A project on a store that several processes use."

    def __init__(self, project, store: Store, database_url: str):
        self.project, self.store, self.folder, self.write = project, store, project.folder, project.write
        self.env = {**os.environ, "MLCYCLE_STORE": database_url, "MLCYCLE_ARTIFACTS": store.settings.artifacts, "MLCYCLE_ACTOR": "ada@lab",
                    "COLUMNS": "200"}
        self.processes: list[subprocess.Popen] = []

    def start(self, *words: str, **options) -> subprocess.Popen[str]:
        "Start an mlcycle command."
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        self.processes.append(subprocess.Popen([sys.executable, "-m", "mlcycle", *words], cwd=self.folder, env=self.env, text=True, **options))
        return self.processes[-1]

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        "Run an mlcycle command."
        return subprocess.run([sys.executable, "-m", "mlcycle", *words], cwd=self.folder, env=self.env, text=True, capture_output=True, timeout=90)

    def run(self) -> Run | None:
        "The newest run, None without one."
        return next((runs.to_run(row) for row in query.page(self.store, limit=1)), None)

    def text(self) -> str:
        "What the newest run has printed, as the store tells now."
        return "".join(p.text for p in printed(self.store, run)) if (run := self.run()) else ""


@pytest.fixture
def shared(project, store: Store, database_url: str) -> Iterator[Shared]:
    "Both databases in turn; no process is left behind."
    made = Shared(project, store, database_url)
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_logs_follow_a_run_of_another_process(shared: Shared, wait_for: Callable):
    "A second process shows what the first prints while it prints it, to the very end, and the live rows go when the executed notebook is kept."
    shared.write("# Train", STEPS)
    manager = shared.start("run", "train.ipynb", "--name", "slow")
    wait_for(lambda: "step 3" in shared.text())
    follower = shared.start("logs", "slow", "--follow")
    early = shared.call("logs", "slow", "--json")
    told = json.loads(early.stdout)
    assert told["status"] == "running" and told["outputs"][0] == {"cell": "c2", "kind": "cell", "text": "1/1 · Train"}, early.stderr
    cells, pieces = zip(*((each["cell"], each["text"]) for each in told["outputs"][1:]), strict=True)  # as many as the store was given
    assert "".join(pieces) == "step 0\nstep 1\nstep 2\nstep 3\n" and set(cells) == {"c2"}
    begun = follower.stdout.readline() + follower.stdout.readline()
    (shared.folder / "go").touch()
    out = begun + follower.stdout.read()
    assert manager.wait(120) == 0 and follower.wait(120) == 0
    wanted = "── cell 1/1 · Train ──\n" + "".join(f"step {i}\n" for i in range(25)) + "to stderr\n'the result'\n"
    assert out.startswith(wanted) and re.fullmatch(r"slow \(\w{8}\) finished\n", out[len(wanted):]), out
    assert live.after(shared.store, shared.run()) == [] and shared.call("logs", "slow").stdout == wanted


def test_logs_survive_the_manager(shared: Shared, wait_for: Callable):
    "SIGKILL of the process that runs the notebook: what it printed until half a second before is there, and secrets are not."
    shared.env |= {"TOKEN": "hf_0123456789", "MLCYCLE_SECRETS": "TOKEN"}
    shared.write("import os, time\nt = os.environ['TOKEN']\nprint('key', t)\nprint(t[:5], end='', flush=True)\ntime.sleep(0.4)\nprint(t[5:])\n"
                 "print('working' + ' ' * 500, flush=True)\ntime.sleep(60)")
    manager = shared.start("run", "train.ipynb")
    wait_for(lambda: "working" in shared.text())
    manager.kill()
    manager.communicate()
    done = shared.call("logs", shared.run().id[:8])
    assert "key [redacted]\n[redacted]\nworking" in done.stdout and "hf_01" not in done.stdout and "23456789" not in done.stdout, done.stdout
    assert done.returncode == 0 and "is lost" in done.stdout
    rows = json.dumps([p.text for p in live.after(shared.store, shared.run())])
    assert "hf_01" not in rows


def test_a_flood_is_bounded(project, store: Store):
    "A cell that prints tens of megabytes: the store holds the beginning and the latest part while it runs, and says how much is missing."
    from mlcycle.notebooks.execute.runner import run_notebook
    from mlcycle.notebooks.follow.watch import HEAD, TAIL

    project.write("import time\nfrom pathlib import Path\n"
                  "for i in range(20):\n    for j in range(1000):\n        print(i, j, 'x' * 1000)\n    time.sleep(0.1)\n"
                  "while not Path('looked').exists():\n    time.sleep(0.05)")
    seen: list[tuple[int, int]] = []

    class Watching:
        def isatty(self) -> bool:
            return False

        def write(self, text: str) -> None:
            run = runs.to_run(query.page(store, limit=1)[0])
            held = live.after(store, run, limit=10**6)
            if len(held) > 1:  # before the first text there is the heading of the cell alone
                seen.append((sum(len(p.text) for p in held), held[-1].end))
                assert held[0].kind == "cell" and held[1].text.startswith("0 0 xxx")
                if held[-1].end > 5_000_000:
                    (project.folder / "looked").touch()

        def flush(self) -> None:
            pass

    done = run_notebook("train.ipynb", store=store, follow=Watching())
    assert done.status == "finished" and max(end for _, end in seen) > 5_000_000
    assert max(size for size, _ in seen) <= HEAD + TAIL + 50_000
    assert live.after(store, runs.get(store, done.run)) == []


def test_follow_on_a_terminal_and_in_a_pipe(shared: Shared):
    "In a pipe only the outputs stand above the result; with --json they go to standard error; on a terminal the bar is wiped before each."
    shared.write("# Train", "print('one')", "import time\ntime.sleep(0.7)\nprint('\\x1b[31mtwo\\x1b[0m', end='')\ntime.sleep(0.7)\nprint()")
    done = shared.call("run", "train.ipynb", "--follow")
    assert done.stdout.startswith("── cell 1/2 · Train ──\none\n── cell 2/2 · Train ──\ntwo\ntrain.ipynb finished"), done.stdout
    as_json = shared.call("run", "train.ipynb", "--follow", "--json")
    assert json.loads(as_json.stdout)["status"] == "finished" and "two\n" in as_json.stderr
    ours, theirs = pty.openpty()
    process = shared.start("run", "train.ipynb", "--follow", stdout=theirs, stderr=theirs)
    os.close(theirs)
    drawn = b""
    try:
        while piece := os.read(ours, 65536):
            drawn += piece
    except OSError:  # the other end was closed
        pass
    os.close(ours)
    assert process.wait(60) == 0
    text = drawn.decode()
    lines, line = [], ""  # what the terminal shows: a wiped line is gone
    for part in re.split(r"(\r\x1b\[2K|\r\n)", text):
        if part == "\r\n":
            lines.append(line)
            line = ""
        else:
            line = "" if part.startswith("\r\x1b[2K") else line + part
    shown = "\n".join(re.sub(r"\x1b\[[0-9;]*m", "", each) for each in lines)
    assert "── cell 1/2 · Train ──\none\n── cell 2/2 · Train ──\ntwo\ntrain.ipynb: finished after 2 of 2 cells" in shown, text
    assert "\x1b[31mtwo\x1b[0m" in text and "train.ipynb: cell 2/2" in text


LOOP = """
from mlcycle.notebooks.execute.runner import run_notebook
for i in range(2):
    try:
        print(run_notebook('train.ipynb', {'seconds': [90, 0][i]}, name=f'run{i}').status, flush=True)
    except Exception as e:
        print(type(e).__name__, e.result.status, e.result.reason, flush=True)
"""


def test_stop_ends_one_run_and_not_the_others(shared: Shared, wait_for: Callable):
    "Asked through the store, a run ends cancelled with what it had, by name of who asked; the process that runs several goes on with the next."
    shared.write({"source": "seconds = 1", "tags": ["parameters"]}, "import time\nprint('begun', flush=True)\ntime.sleep(seconds)")
    code = [sys.executable, "-c", LOOP]
    manager = subprocess.Popen(code, cwd=shared.folder, env=shared.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    shared.processes.append(manager)
    wait_for(lambda: "begun" in shared.text())
    with shared.store.db.write() as con:  # as on another machine, where no signal goes
        con.execute(sa.update(schema.runs).where(schema.runs.c.name == "run0").values(host="elsewhere"))
    done = shared.call("stop", "run0")
    assert done.returncode == 0 and "has ended: cancelled, stopped by ada@lab." in done.stdout, done.stderr
    out, err = manager.communicate(timeout=60)
    assert out.splitlines() == ["NotebookRunError cancelled stopped by ada@lab", "finished"], err
    again = shared.call("stop", "run0", "--json")
    assert (again.returncode, json.loads(again.stdout)["status"]) == (0, "cancelled")
    first = runs.resolve(shared.store, "run0")
    assert "begun" in "".join(p.text for p in printed(shared.store, first))
    assert "run.stop" in [e.action for e in events.listing(shared.store, first.id)]


def test_stop_of_a_run_that_cannot_react(shared: Shared, wait_for: Callable):
    "A process that is suspended is no liar's run: it is said that it has not ended, and what to do; one that was killed is lost."
    import signal

    shared.write("import time\nprint('begun', flush=True)\ntime.sleep(90)")
    manager = shared.start("run", "train.ipynb", "--name", "stuck")
    wait_for(lambda: "begun" in shared.text())
    manager.send_signal(signal.SIGSTOP)
    done = shared.call("stop", "stuck", "--wait", "1")
    assert done.returncode == 1 and "has not ended within 1 s" in done.stdout and f"kill {manager.pid}" in done.stdout
    manager.kill()
    manager.communicate()
    done = shared.call("stop", "stuck")
    assert done.returncode == 1 and "is lost" in done.stdout and "fsck --repair" in done.stdout


def test_stop_a_script(shared: Shared, wait_for: Callable):
    "A run that nobody looks after gets Ctrl-C, and only when its process is the one that was recorded."
    code = "import time\nimport mlcycle as mlc\nwith mlc.run('script', capture=False):\n    print('begun', flush=True)\n    time.sleep(90)"
    words = [sys.executable, "-c", code]
    process = subprocess.Popen(words, cwd=shared.folder, env=shared.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    shared.processes.append(process)
    assert process.stdout.readline() == "begun\n"
    done = stop_run(shared.store, shared.run())
    assert done.ended and done.run.status == "cancelled" and process.wait(120) != 0
