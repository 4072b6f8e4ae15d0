"Papermill's own command line with `--engine mlcycle`: tracked in the same way."
from __future__ import annotations

import json
import subprocess
import sys

import psutil
import pytest

from mlcycle.store import facts


def statuses(path) -> list[str]:
    "What became of each cell, in a notebook file."
    return [cell["metadata"]["papermill"]["status"] for cell in json.loads(path.read_text())["cells"] if "papermill" in cell["metadata"]]


def test_papermill_is_tracked(project):
    "Parameters, metrics, both notebooks and the foreign kernel: all as with `mlcycle run`."
    path = project.write({"source": "lr = 0.1\ndepth = 3", "tags": ["parameters"]}, "import mlcycle as mlc\nmlc.log_metric('auc', lr)",
                         kernelspec={"name": "conda-env-x-py", "display_name": "x", "language": "python"}, language_info={"name": "python"})
    done = project.papermill("train.ipynb", "out.ipynb", "-p", "lr", "0.5")
    assert done.returncode == 0, done.stderr
    (run,) = project.runs()
    assert (run.status, run.kind) == ("finished", "notebook") and facts.params(project.store, run) == {"lr": 0.5, "depth": 3}
    assert project.artifact(run.id, "notebook/source.ipynb") == path.read_bytes()
    out = json.loads((project.folder / "out.ipynb").read_text())
    assert out["metadata"]["mlcycle"]["run"] == run.id and set(statuses(project.folder / "out.ipynb")) == {"completed"}


def test_papermill_exit_codes(project):
    "Where Papermill itself would say 0 (an early exit) or would mark everything completed (a dead kernel), it does not."
    project.write("print('one')", "import sys; sys.exit(0)", "print('three')", kernelspec={"name": "python3", "display_name": "p"},
                  language_info={"name": "python"})
    early = project.papermill("train.ipynb", "early.ipynb")
    assert early.returncode == 1 and "stopped before its last cell" in early.stderr
    assert statuses(project.folder / "early.ipynb") == ["completed", "failed", "pending"]

    project.write("print('one')", "import os; os.kill(os.getpid(), 9)", "print('three')")
    assert project.papermill("train.ipynb", "dead.ipynb", "-k", "python3").returncode == 138  # Papermill's own code for it
    assert statuses(project.folder / "dead.ipynb") == ["completed", "failed", "pending"]

    project.write("1 / 0")
    raised = project.papermill("train.ipynb", "raised.ipynb", "-k", "python3")
    assert raised.returncode == 1 and "ZeroDivisionError" in raised.stderr
    assert "papermill-error-cell" in (project.folder / "raised.ipynb").read_text()  # Papermill's banner is there

    project.write("import time; time.sleep(60)")
    slow = project.papermill("train.ipynb", "slow.ipynb", "-k", "python3", "--execution-timeout", "1")
    assert slow.returncode == 1 and "took longer than 1 s" in slow.stderr
    assert [run.reason for run in project.runs()] == ["cell 1 took longer than 1 s", "cell 1 raised ZeroDivisionError: division by zero",
                                                      "the kernel died by SIGKILL: it was killed from outside, or the memory ran out",
                                                      "stopped before its last cell"]


def test_the_time_for_a_kernel_to_start_is_held(project, tmp_path, monkeypatch):
    "`--start-timeout` reaches the kernel of a run: one that never answers fails the run with that limit, and does not go on running."
    deaf, pid = tmp_path / "kernels" / "deaf", tmp_path / "pid"
    deaf.mkdir(parents=True)
    program = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(3600)"
    (deaf / "kernel.json").write_text(json.dumps({"argv": [sys.executable, "-c", program], "display_name": "d", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    project.write("print('never')", kernelspec={"name": "deaf", "display_name": "d"}, language_info={"name": "python"})
    done = project.papermill("train.ipynb", "out.ipynb", "--start-timeout", "2")
    assert done.returncode == 1 and "respond in 2 seconds" in done.stderr
    (run,) = project.runs()
    assert run.status == "failed" and run.reason.startswith("the kernel did not start") and "2 seconds" in run.reason
    with pytest.raises(psutil.NoSuchProcess):
        psutil.Process(int(pid.read_text())).cmdline()


ELSEWHERE = """
import json, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
import mlcycle.notebooks.execute.engine
from papermill.iorw import papermill_io

class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"of the web")

    def log_message(self, *args):
        pass

early = [name for name in ("boto3", "pyarrow", "requests") if name in sys.modules]
papermill_io.write("of S3", sys.argv[1] + "/kept.ipynb")
server = HTTPServer(("127.0.0.1", 0), Answer)
threading.Thread(target=server.serve_forever, daemon=True).start()
web = papermill_io.read(f"http://127.0.0.1:{server.server_port}/x.ipynb")
import papermill.s3, pyarrow.fs
print(json.dumps([early, papermill_io.read(sys.argv[1] + "/kept.ipynb"), web, pyarrow.fs.FileSelector.__name__, papermill.s3.S3.__name__]))
"""


def test_what_papermill_imports_late_works_as_ever(s3_url):
    "S3, the web and pyarrow are imported when a notebook lies there: Papermill reads and writes it, and the modules are the real ones for everybody."
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, s3_url], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[], "of S3", "of the web", "FileSelector", "S3"]
