"Completion by the tab key in the real shells: what they are given to run, and what they show beside the names."
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from mlcycle.store import artifacts, facts, metrics, models, runs
from mlcycle.store.connect import connect
from mlcycle.ui.completion import complete_items, complete_line

# what is typed before the tab key, and the words that the command is then called with
CASES = [("run train.ipynb -p tre", ["run", "train.ipynb", "-p", "trees"]),
         ("run train.ipynb -p model l", ["run", "train.ipynb", "-p", "model", "logistic"]),
         ("tune train.ipynb -m au", ["tune", "train.ipynb", "-m", "auc"]),
         ("runs -o -metrics.a", ["runs", "-o", "-metrics.auc"]),
         ("runs -c all,tre", ["runs", "-c", "all,trees"]),
         ("runs 'metrics.auc > 0.9 and params.tr", ["runs", "metrics.auc > 0.9 and params.trees"]),
         ("show big", ["show", "big forest"]),
         ("show basel", ["show", "baseline"]),
         ("predict biopsy@ch", ["predict", "biopsy@champion"]),
         ("rollback bio", ["rollback", "biopsy@champion"]),
         ("show biopsy/", ["show", "biopsy/1"]),
         ("promote biopsy/1 challe", ["promote", "biopsy/1", "challenger"])]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A notebook, runs of it (two of one name, one whose name has a blank), and a model with a champion."
    folder = tmp_path_factory.mktemp("completed")
    cells = [nbformat.v4.new_code_cell('trees: int = 200  # of the forest, at most\nmodel: Literal["forest", "logistic"] = "forest"',
                                       metadata={"tags": ["parameters"]}),
             nbformat.v4.new_code_cell("import mlcycle as mlc\nmlc.log_metric('auc', 0.9)")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "train.ipynb")
    with connect(folder / ".mlcycle" / "mlcycle.db") as store:
        for name in ("baseline", "big forest", "twice", "twice"):
            run = runs.create(store, "churn", name)
            metrics.log(store, run.pk, {"auc": 0.9}, {"auc": 0})
            facts.put_params(store, run.pk, {"trees": 200})
            runs.finish(store, run)
        manifest = artifacts.put_bytes(store, run, b"{}", "model/manifest.json", "model")
        models.create_version(store, "biopsy", run, manifest.digest, "sklearn")
        models.move_alias(store, "biopsy", "champion", 1)
    return folder


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TERM": "dumb", "INPUTRC": "/dev/null", "PS1": "",
            "HOME": "/nonexistent"}


def need_shell(name: str) -> None:
    "Skip where a shell is not installed; where CI=true everything is meant to be, so fail."
    if shutil.which(name) is None:
        (pytest.fail if os.environ.get("CI", "").lower() in ("true", "1", "yes") else pytest.skip)(f"needs {name}")


def shell(name: str, project: Path) -> Any:
    "A shell at a terminal whose function `mlcycle` prints the words that it is given; completion calls the program."
    pexpect = pytest.importorskip("pexpect")
    script = subprocess.run([sys.executable, "-m", "mlcycle", "completion", name], capture_output=True, text=True, check=True, timeout=60).stdout
    (project / f"complete.{name}").write_text(script)
    options = ["--norc", "--noprofile"] if name == "bash" else ["-f"]
    child = pexpect.spawn(name, options, cwd=str(project), encoding="utf-8", timeout=60, env=environment(), dimensions=(40, 400))
    begin = "bind 'set enable-bracketed-paste off'" if name == "bash" else "unset zle_bracketed_paste; autoload -U compinit; compinit -u -D"
    child.sendline(f"PS1=; {begin}; source ./complete.{name}; mlcycle() {{ printf '<%s>' \"$@\"; echo '<e''nd>'; }}; echo 're''ady'")
    child.expect_exact("ready")
    return child


@pytest.mark.parametrize("name", ["bash", "zsh"])
def test_a_shell_calls_the_command_with_what_was_completed(project: Path, name: str) -> None:
    "Parameters, metrics, orders, queries, names with blanks, aliases and versions, each as the shell hands it on."
    need_shell(name)
    child = shell(name, project)
    for typed, words in CASES:
        child.send(f"mlcycle {typed}\t")
        child.send("\r")
        child.expect_exact("<end>")
        assert child.before.rpartition("\n")[2].strip() == "".join(f"<{word}>" for word in words), (typed, child.before)
    child.close(force=True)


def test_fish_shows_names_with_what_they_are(project: Path) -> None:
    "The same completions in fish, which shows a help text: the age of a run, the default of a parameter with its commas."
    need_shell("fish")
    script = subprocess.run([sys.executable, "-m", "mlcycle", "completion", "fish"], capture_output=True, text=True, check=True, timeout=60).stdout
    (project / "complete.fish").write_text(script)

    def complete(line: str) -> dict[str, str]:
        quoted = line.replace("\\", "\\\\").replace('"', '\\"')
        done = subprocess.run(["fish", "-N", "-c", f'source complete.fish; complete -C "mlcycle {quoted}"'], cwd=project, capture_output=True,
                              text=True, timeout=60, env=environment() | {"HOME": str(project)}, check=True)
        return {value: about for value, _, about in (answer.partition("\t") for answer in done.stdout.splitlines())}

    for typed, words in CASES:
        assert words[-1].replace(" ", r"\ ") in complete(typed) or words[-1] in complete(typed), typed
    assert complete("run train.ipynb -p ") == {"trees": "200; of the forest, at most", "model": '"forest"'}
    assert complete("show bas")["baseline"].endswith("ago, finished")


def test_runs_are_offered_by_name(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "An id stands only for a run that has no name of its own: an older one of a name that was used twice, unless that name is typed."
    monkeypatch.chdir(project)
    offered = {item.value: item.help for item in complete_items("compare ")}
    first, second, *_ = offered
    assert first == "twice" and offered[second].startswith("twice, ") and len(second) == 8 and set(second) <= set("0123456789abcdef")
    assert set(offered) == {"twice", second, "big forest", "baseline"} and all(about.endswith("ago, finished") for about in offered.values())
    assert complete_line("logs tw") == ["twice", "twice~1"] and complete_line("logs twice~") == ["twice~1"]
    assert complete_line(f"logs {second[:6]}") == [second]
    assert complete_line("run missing.ipynb -p ") == [] and complete_line('runs "params.model == \'fo') == []
