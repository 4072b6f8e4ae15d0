"The lines that people read decide nothing: with every reason worded anew, the same exceptions are raised and the same verdicts given."
from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from papermill import execute_notebook

from mlcycle.config import ENV_TRIAL
from mlcycle.errors import NotebookRunError, ReproductionError, TrialPruned
from mlcycle.notebooks.document import endings
from mlcycle.notebooks.execute.drive import Control
from mlcycle.notebooks.execute.runner import run_notebook
from mlcycle.notebooks.record.result import NotebookInterrupted, NotebookTerminated
from mlcycle.notebooks.reproduce.runner import reproduce
from mlcycle.notebooks.sweep.runner import run_many
from mlcycle.store import requests
from mlcycle.tune.listener import Listener

WORDS = "nothing that code could read"


@pytest.fixture(autouse=True)
def reworded(monkeypatch) -> None:
    "Every ending that is made gives these words as its reason, and so does every stop."
    ending = endings.Ending

    def make(status: str, reason: str | None = None, *rest: Any, **named: Any) -> endings.Ending:
        return ending(status, reason and WORDS, *rest, **named)

    monkeypatch.setattr(endings, "Ending", make)
    monkeypatch.setattr(endings, "_SIGNALS", dict.fromkeys(endings._SIGNALS, WORDS))


@pytest.mark.parametrize(("signum", "raised"),
                         [(signal.SIGINT, NotebookInterrupted), (signal.SIGTERM, NotebookTerminated), (None, NotebookInterrupted)])
def test_who_stops_a_run(project, signum, raised):
    "Ctrl-C, SIGTERM and the program that started the run."
    control = Control()
    control.stop(signum)
    with pytest.raises(raised) as e:
        run_notebook(project.write("open('never', 'w')"), control=control, progress=False)
    assert (e.value.result.status, e.value.result.reason, e.value.result.cause.signum) == ("cancelled", WORDS, signum)


def test_a_request_from_elsewhere(project, monkeypatch):
    "`mlcycle stop` is an error of the run, no interrupt of what runs it."
    monkeypatch.setattr(requests, "asked_by", lambda store, pk: "ada@lab")
    with pytest.raises(NotebookRunError, match="was stopped by ada@lab") as e:
        run_notebook(project.write("import time\ntime.sleep(60)"), progress=False)
    assert e.value.result.status == "cancelled" and e.value.result.cause == endings.stop_cause(None, "ada@lab")


def test_a_sweep_that_is_terminated(project):
    "SIGTERM while its first run goes on."
    path = project.write({"source": "n = 0", "tags": ["parameters"]},
                         f"import os, signal, time\nos.kill({os.getpid()}, signal.SIGTERM)\ntime.sleep(60)")
    with pytest.raises(NotebookTerminated, match=WORDS):
        run_many(path, {"n": [1, 2]}, jobs=1, progress=False)


def test_an_early_exit(project):
    "Papermill itself would report success."
    with pytest.raises(NotebookRunError, match="1 code cell below it did not run"):
        execute_notebook(project.write("import sys\nsys.exit()", "1"), None, engine_name="mlcycle", progress_bar=False)
    assert project.runs()[0].reason == WORDS


def test_a_limit_is_no_verdict(project):
    "A run that took too long when it was repeated says nothing about the first one."
    run = run_notebook(project.write("import pathlib, time\ntime.sleep(60 if pathlib.Path('slow').exists() else 0)"), progress=False).run
    (project.folder / "slow").touch()
    with pytest.raises(ReproductionError, match=WORDS):
        reproduce(run, cell_timeout=1, progress=False, store=project.store)


def test_a_study_prunes(project, monkeypatch):
    "The class that writes the text of the exception reads it too."
    class Handler:
        metric = "auc"

        def report(self, value: float, step: int) -> bool:
            return step == 2

    text = "({value}) " + WORDS + " [{step}]"
    monkeypatch.setattr(TrialPruned, "_TEXT", text)
    path = project.write(f"import mlcycle as mlc\nmlc.TrialPruned._TEXT = {text!r}", "for step in range(5):\n    mlc.report(0.5, step)")
    with Listener() as listener:
        done = run_notebook(path, progress=False, env={ENV_TRIAL: listener.register("1", Handler())})
    assert (done.status, done.reason, done.cause.kind) == ("pruned", WORDS, "pruned")
