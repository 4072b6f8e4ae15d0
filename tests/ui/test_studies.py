"Studies from the command line and from `mlc`: lists, JSON, one name for a study and its runs, completion, lineage."
from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import mlcycle as mlc
from mlcycle.errors import NotFoundError
from mlcycle.store.connect import connect
from mlcycle.ui.completion import complete_line
from mlcycle.ui.tree import Face, invoke


def call(*words: str) -> object:
    return invoke(list(words), Face())


def tuned(name: str, **options: object) -> object:
    def fit(x: float, kind: str) -> float:
        if x > 3:
            raise ValueError("x is too large")
        return (x - 1) ** 2 + (kind == "b")

    return mlc.tune(fit, {"x": "uniform(-5, 5)", "kind": ["a", "b"]}, study=name, sampler="random", seed=0, progress=False,
                    **{"trials": 20, "resume": True, **options})


def test_looking_at_studies_makes_none(tmp_path: Path) -> None:
    "A store in which nobody tuned, and no store at all: nothing is made by looking."
    from sqlalchemy import inspect

    with pytest.raises(NotFoundError, match="no store here"):
        call("studies")
    assert not list(tmp_path.iterdir())
    store = connect(tmp_path / "mlcycle.db")
    assert call("studies").data == []
    for words in (["show", "valley"], ["show", "study:valley"]):
        with pytest.raises(NotFoundError, match="'valley'"):
            call(*words)
    assert "studies" not in inspect(store.db.engine).get_table_names()


def test_what_a_machine_reads_of_studies(tmp_path: Path) -> None:
    "One line of JSON each, counted over the whole study, after two sessions."
    (tmp_path / ".mlcycle").mkdir()
    tuned("valley", trials=12)
    found = tuned("valley", trials=20)
    listed = json.loads(_cli("studies", "--json"))
    assert len(listed) == 1 and listed[0]["study"] == "valley" and listed[0]["running"] == [] and listed[0]["target"] == "fit"
    assert sum(listed[0]["trials"].values()) == 20 and listed[0]["trials"]["failed"] == found.number("failed") > 0
    shown = json.loads(_cli("show", "valley", "--json"))
    assert shown["best"] == found.json()["best"] and len(shown["trials"]) == 20 and len(shown["sessions"]) == 2
    assert next(iter(shown["importances"])) == "x" and [each["name"] for each in shown["space"]["dimensions"]] == ["x", "kind"]
    text = _cli("show", "valley")
    assert "importances: x" in text and "varied: x uniform(-5, 5), kind" in text and "ValueError: x is too large" in text


def _cli(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "mlcycle", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_name_that_a_study_and_runs_have(tmp_path: Path) -> None:
    "The name is the study's while only its sessions have it; another run takes precedence, and the study stays in reach."
    connect(tmp_path / "mlcycle.db")
    session = tuned("valley").run
    assert call("show", "valley").data["study"] == "valley" and call("show", session[:10]).data["run"] == session
    assert call("show", "valley-3").data["kind"] == "trial"
    with mlc.run("valley", capture=False):
        pass
    assert "mlcycle show study:valley" in repr(call("show", "valley")) and call("show", "valley").data["kind"] == "script"
    assert call("show", "study:valley").data["study"] == "valley"
    with pytest.raises(NotFoundError, match="Did you mean 'valley'"):
        call("show", "study:vallei")


def test_how_long_others_still_take(tmp_path: Path) -> None:
    "What a session was asked for stands in its run; whoever looks on reckons from it as the session's own bar does."
    from mlcycle.store import facts, runs
    from mlcycle.track.begin import start
    from mlcycle.tune.overview import progress, sessions
    from mlcycle.tune.result import read_study
    from mlcycle.tune.storage import open_study

    store, seen = connect(tmp_path / "mlcycle.db"), []

    def state() -> object:
        study = open_study(store, "valley")
        return progress(store, study, read_study(study), sessions(store, "valley"))

    def look(x: float) -> float:
        seen.append((state(), repr(call("show", "valley"))))
        return x

    done = mlc.tune(look, {"x": "uniform(0, 1)"}, trials=6, timeout=600, study="valley", sampler="random", pruner="none", progress=False)
    assert facts.params(store, runs.get(store, done.run)) == {"sampler": "random", "pruner": "none", "trials": 6, "timeout": 600, "jobs": 1}
    last, shown = seen[-1]
    assert (last.counts.counted, last.total, last.seconds, last.running, len(last.took)) == (5, 6, 600, 1, 5) and "5 of 6 trials, 1 running" in shown
    assert last.remaining() == pytest.approx(sum(last.took) / 5) and " left" in shown
    assert state() is None and " left" not in repr(call("show", "valley"))
    others = []
    for limits in ({"trials": 20, "jobs": 3}, {"trials": 30, "timeout": 60.0, "jobs": 1}, {"timeout": 90.0, "jobs": 1}):
        others.append(start("valley", kind="study", store=store, params=limits, capture=False))
        others[-1].set_tags({"study": "valley"})
        seen.append(state())
    first, second, third = seen[-3:]
    assert (first.total, first.seconds, first.slots, first.took) == (20, None, 3, [])  # trials of a session before say nothing of this one
    assert (second.total, second.seconds, second.slots) == (30, None, 4)  # one has no limit of time, so that the number ends it
    assert (third.total, third.seconds, third.remaining()) == (None, None, None)  # one ends by the number, one by time: nobody knows
    for each in others:
        each.finish()


def test_names_of_studies_are_completed(tmp_path: Path) -> None:
    "The tab key offers a study once, not each of its sessions."
    connect(tmp_path / "mlcycle.db")
    tuned("valley", trials=2)
    tuned("valley", trials=3)
    found = complete_line("show va")
    assert found.count("valley") == 1 and "valley-1" in found
    assert complete_line("show study:va") == ["study:valley"]


def test_a_version_names_the_search_it_came_from(tmp_path: Path) -> None:
    "In the lineage and on the page of the version: study, trial and space."
    from sklearn.linear_model import LogisticRegression

    from mlcycle.registry.lineage import lineage

    connect(tmp_path / "mlcycle.db")

    def fit(C: float) -> float:
        mlc.log_model(LogisticRegression(C=C).fit([[0.0], [1.0]], [0, 1]), input_example=[[0.0]])
        return abs(C - 1)

    found = mlc.tune(fit, {"C": "loguniform(0.1, 10)"}, trials=3, sampler="random", seed=0, study="search", register="hills", progress=False)
    assert found.version == "hills/1"
    node = lineage("hills/1").node("study:search")
    assert node.label == f"search, trial {found.best.number}" and node.detail == "C loguniform(0.1, 10)"
    shown = call("show", "hills/1")
    assert shown.data["study"] == "search" and shown.data["trial"] == found.best.number
    assert shown.data["space"]["dimensions"][0]["name"] == "C" and "C loguniform(0.1, 10)" in repr(shown)
    assert f"study search, trial {found.best.number}" in repr(call("lineage", "hills/1"))


KILLED = """
import os, signal, mlcycle as mlc
def fit(x):
    if x > 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return x
mlc.tune(fit, {"x": [0, 1, 2, 3]}, sampler="grid", study="killed", progress=False)
"""


def test_trials_of_a_killed_session_are_lost_everywhere(tmp_path: Path) -> None:
    "Whoever asks for the study hears of a trial what `mlcycle runs` says of its run, at once and not when the next session looks."
    (tmp_path / ".mlcycle").mkdir()
    assert subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, timeout=120).returncode == -signal.SIGKILL
    (listed,) = json.loads(_cli("studies", "--json"))
    assert listed["trials"] == {"finished": 2, "lost": 1} and listed["running"] == []
    shown = json.loads(_cli("show", "killed", "--json"))
    assert [trial["status"] for trial in shown["trials"]] == ["finished", "finished", "lost"]
    assert "1 lost" in _cli("show", "killed") and "running" not in _cli("show", "killed") + _cli("studies")
    assert [run["status"] for run in json.loads(_cli("runs", "name == 'killed-2'", "--json"))] == ["lost"]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_an_importance_is_the_same_wherever_it_is_shown(tmp_path: Path, direction: str) -> None:
    "The line, the page's head and both pictures: for a goal that is maximized, the params count that make it large."
    from mlcycle.tune.importances import importances
    from mlcycle.tune.pictures import live_picture, picture
    from mlcycle.tune.result import read_study
    from mlcycle.tune.storage import open_study
    from mlcycle.ui.widgets.study_parts import head_of

    store = connect(tmp_path / "mlcycle.db")
    sign = 1 if direction == "minimize" else -1
    mlc.tune(lambda rate, leaves: sign * (abs(rate) if abs(rate) < 1 else 1 + abs(leaves)), {"rate": "uniform(-5, 5)", "leaves": "uniform(-5, 5)"},
             trials=60, sampler="random", seed=1, direction=direction, study="s", progress=False)
    study = open_study(store, "s")
    shares = importances(study)
    assert next(iter(shares)) == "rate"
    assert head_of(study, read_study(study), [])["importances"] == [[name, round(share, 4)] for name, share in shares.items()]
    axes = picture(study, "importances").axes[0]
    drawn = dict(zip((label.get_text() for label in axes.get_yticklabels()), (patch.get_width() for patch in axes.patches), strict=True))
    assert drawn == pytest.approx(shares)
    (bars,) = live_picture(study, "importances").data
    assert dict(zip(bars.y, bars.x, strict=True)) == pytest.approx(shares)
    text = call("show", "s")
    assert all(f"{name} {share:.2f}" in repr(text) for name, share in shares.items())


def test_pictures_that_make_no_sense_have_a_reason(tmp_path: Path) -> None:
    "No finished trial, one trial, one parameter, two objectives: what cannot be drawn says why, and what can be drawn is."
    from mlcycle.errors import UsageError
    from mlcycle.tune.pictures import kinds, live_picture, picture
    from mlcycle.tune.storage import open_study
    from mlcycle.ui.views.studies import study_view

    store = connect(tmp_path / "mlcycle.db")

    def fails(x: float) -> float:
        raise ValueError("never")

    def both(x: float) -> tuple[float, float]:
        return x, 1 - x

    mlc.tune(fails, {"x": [0, 1, 2]}, sampler="grid", study="none", progress=False)
    mlc.tune(lambda x: x, {"x": [1]}, sampler="grid", study="one", progress=False)
    mlc.tune(both, {"x": "uniform(0, 1)"}, trials=12, sampler="random", metric="up,down", study="two", progress=False)
    for name, can in (("none", {"timeline"}), ("one", {"timeline"}), ("two", {"history", "front", "slice", "parallel", "timeline"})):
        study = open_study(store, name)
        found = kinds(study)
        assert {kind for kind, why in found.items() if not why} == can, found
        for kind, why in found.items():
            if why:
                with pytest.raises(UsageError, match="cannot be drawn"):
                    picture(study, kind)
            else:
                assert picture(study, kind).axes
                assert not pytest.importorskip("plotly") or live_picture(study, kind).data
        assert study_view(store, name)._repr_html_().count("<img class='mlc-drawn'") == len(can)
