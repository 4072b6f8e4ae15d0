"The command line as a process: exit codes, JSON, pipes, completion, and the demo from end to end."
from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import click
import nbformat
import pytest

import mlcycle as mlc
from mlcycle.evaluate.comparison import compare
from mlcycle.store import artifacts, facts, models, runs
from mlcycle.store.connect import connect, open_store
from mlcycle.store.query import page
from mlcycle.store.runs import to_run
from mlcycle.ui.commands.demo import NEXT
from mlcycle.ui.tree import COMMANDS, FIRST, GROUPS, Face, tree
from mlcycle.ui.widgets.comparison_parts import compare_view
from tests.tree import ROOT


def mlcycle(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "mlcycle", *words], cwd=cwd, capture_output=True, text=True, timeout=300,
                          env={**os.environ, **env}, stdin=subprocess.DEVNULL)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / ".mlcycle").mkdir()
    return tmp_path


def write_notebook(path: Path, *sources: str) -> Path:
    "A notebook whose first cell holds its parameters."
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    nb.cells[0].metadata["tags"] = ["parameters"]
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nb, path)
    return path


@pytest.mark.parametrize("words", [("runs",), ("models", "--json"), ("show", "churn"), ("fsck",), ("lineage", "churn")])
def test_who_only_looks_makes_no_store(tmp_path: Path, words: tuple[str, ...]) -> None:
    "A command in the wrong folder says that nothing is there and how to begin, and leaves the folder as it was."
    (tmp_path / "rows.csv").write_text("a\n1\n", encoding="utf-8")
    done = mlcycle(*words, cwd=tmp_path)
    assert done.returncode == 2 and "no store" in done.stdout + done.stderr and "mlcycle demo" in done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_demo_takes_an_empty_folder_through_the_cycle(tmp_path: Path) -> None:
    "The README's first command: three runs, a champion, and predictions of rows that no run has seen, in their order."
    done = mlcycle("demo", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    project = tmp_path / "mlcycle-demo"
    assert len(result["runs"]) == 3 and result["holdout_accuracy"] > 0.9
    models = json.loads(mlcycle("models", "--json", cwd=project).stdout)
    assert [(m["name"], m["versions"], m["aliases"]) for m in models] == [("biopsy", [1], {"champion": 1})]
    runs = json.loads(mlcycle("runs", "status == 'finished' and params.folds == 5", "-o", "-metrics.auc", "--json", cwd=project).stdout)
    assert [r["id"] for r in runs] == result["runs"] and runs[0]["id"] == result["best"]
    import pandas as pd

    predicted, held_out = pd.read_csv(project / "predictions.csv"), pd.read_csv(project / "data" / "holdout.csv")
    assert predicted["diagnosis"].tolist() == held_out["diagnosis"].tolist()
    assert json.loads(mlcycle("fsck", "--json", cwd=project).stdout)["sound"]
    again = mlcycle("demo", cwd=tmp_path)
    assert again.returncode == 2 and "is not empty" in again.stderr
    refused = mlcycle("predict", "biopsy", "data/holdout.csv", "-o", "other.csv", cwd=project)
    assert refused.returncode == 1 and "diagnosis" in refused.stderr and not (project / "other.csv").exists()
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## In a terminal\n")[1].split("```sh\n")[1].split("```")[0]
    needed = ("run", "register", "promote", "rollback")  # the others are tried by the tests of the README
    for lines, name, number in ((NEXT.format(folder=project), "more-trees", 2), (readme, "big-forest", 3)):
        commands = [shlex.split(line.partition("   ")[0])[1:] for line in map(str.strip, lines.splitlines()) if line.startswith("mlcycle ")]
        called = {words[0]: mlcycle(*words, cwd=project) for words in commands if words[0] in needed}
        assert {command: done.stderr for command, done in called.items() if done.returncode} == {}
        assert f"biopsy@champion now points to biopsy/{number} (was biopsy/{number - 1})" in called["promote"].stdout
        assert f"biopsy/{number} comes from the run {name}" in called["promote"].stdout and "Metrics" in called["promote"].stdout
    assert "now points to biopsy/2 (was biopsy/3)" in called["rollback"].stdout
    experiments = {r["name"]: r["experiment"] for r in json.loads(mlcycle("runs", "--json", cwd=project).stdout)}
    assert len(experiments) == 5 and set(experiments.values()) == {"biopsies"}


def test_outcomes_have_exit_codes_and_one_line_of_json(project: Path) -> None:
    "A scheduler reads the exit code and one line; nothing else may be on standard output."
    nb = write_notebook(project / "train.ipynb", "lr: float = 0.1  # learning rate", "import mlcycle as mlc\nmlc.log_metric('auc', 1 - lr)",
                        "assert lr < 1, 'lr is too high'")
    finished = mlcycle("run", nb.name, "-p", "lr", "0.25", "--json", cwd=project)
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert found.keys() == {"run", "status", "reason", "cell", "error", "seconds", "metrics", "version", "cached"}
    assert found["status"] == "finished" and found["metrics"] == {"auc": 0.75} and found["error"] is None
    failed = mlcycle("run", nb.name, "-p", "lr", "2", "--json", cwd=project)
    assert failed.returncode == 1
    found = json.loads(failed.stdout)
    assert found["status"] == "failed" and found["error"] == {"type": "AssertionError", "message": "lr is too high"} and found["cell"]
    wrong = mlcycle("run", nb.name, "-p", "lrr", "1", "--json", cwd=project)
    assert wrong.returncode == 2 and "lr" in json.loads(wrong.stdout)["error"]["message"]
    runs = json.loads(mlcycle("runs", "--json", cwd=project).stdout)
    assert [r["status"] for r in runs] == ["failed", "finished"]
    assert [r["params"] for r in runs] == [{"lr": 2.0}, {"lr": 0.25}]


def test_values_from_yaml_files_and_the_line_in_that_order(project: Path) -> None:
    "A later source wins, and types are the notebook's."
    nb = write_notebook(project / "train.ipynb", "lr: float = 0.1\nname: str = 'a'\nlayers: list = [1]", "print(repr((lr, name, layers)))")
    (project / "values.yaml").write_text("lr: 1\nname: from file\nlayers: [3, 4]\n")
    done = mlcycle("run", nb.name, "-f", "values.yaml", "-y", "{lr: 2}", "-p", "name", "007", "--out", "out.ipynb", cwd=project)
    assert done.returncode == 0, done.stderr
    assert nbformat.read(project / "out.ipynb", 4).cells[-1].outputs[0].text == "(2.0, '007', [3, 4])\n"


@pytest.mark.parametrize("words", [["show", "nothing"], ["run", "missing.ipynb"], ["promote", "churn/1"], ["register", "nothing", "churn"],
                                   ["predict", "churn", "in.csv", "-o", "out.csv"], ["rollback", "churn@champion"], ["artifacts", "nothing"],
                                   ["runs", "metrics.auc >"], ["promot"], ["gc", "--remov"], ["predict", "churn"]])
def test_wrong_use_says_what_to_do(project: Path, words: list[str]) -> None:
    "Exit code 2, a message on standard error, nothing on standard output, and never a traceback."
    done = mlcycle(*words, cwd=project)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert len(done.stderr.strip()) > 20


@pytest.mark.parametrize(("typed", "meant"), [("rusn", "runs"), ("rnu", "run"), ("promot", "promote"), ("shwo", "show"), ("fcsk", "fsck")])
def test_a_slip_of_the_fingers_is_understood(typed: str, meant: str) -> None:
    "Letters in another order are the commonest slip: the command of the same letters is the one that is meant."
    from mlcycle.ui.tree import CommandError, Face, invoke

    with pytest.raises(CommandError, match=f"Did you mean '{meant}'"):
        invoke([typed], Face())


def test_one_problem_is_one(project: Path) -> None:
    "The line of `fsck` counts as a person does, and never calls a loss mended."
    with connect(project / ".mlcycle" / "mlcycle.db") as store:
        run = runs.create(store, "e", "m")
        artifacts.put_bytes(store, run, b"{}", "model/manifest.json", "model")
        kept = artifacts.put_bytes(store, run, b"weights", "model/model.skops", "model")
        Path(store.blobs.path(kept.digest)).write_bytes(b"weightz")
        runs.finish(store, run)
    found = mlcycle("fsck", cwd=project)
    assert found.returncode == 1 and "1 problem." in found.stdout
    again = mlcycle("fsck", "--repair", cwd=project)
    assert again.returncode == 0 and "1 problem, 0 mended, 1 lost for good" in again.stdout and "Lost for good" in again.stdout
    after = mlcycle("fsck", cwd=project)
    assert after.returncode == 0 and "all sound" not in after.stdout and "model/model.skops of run" in after.stdout
    assert "model/model.skops" in mlcycle("runs", cwd=project).stdout and "is lost" in mlcycle("register", "m", "churn", cwd=project).stderr


def test_help_is_in_groups_and_every_command_has_an_example() -> None:
    "Each command is below one heading and described by its whole first sentence; its help ends on an example that the command understands."
    root = click.Context(tree, info_name="mlcycle", terminal_width=80)
    listed = tree.get_help(root)
    modules = {path.stem for path in (ROOT / "mlcycle" / "ui" / "commands").glob("*.py")} - {"__init__"}
    unused = modules - {home.partition(":")[0] for home in COMMANDS.values()}
    assert len(COMMANDS) == sum(map(len, GROUPS.values())) and not any("click.command" in (ROOT / f"mlcycle/ui/commands/{name}.py").read_text()
                                                                      for name in unused)
    headings = [line.rstrip(":") for line in listed.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Options", "Run", "Look", "Model", "Tune", "Keep house"]
    flat = " ".join(listed.split())
    for name in COMMANDS:
        command = tree.get_command(root, name)
        sentence = command.get_short_help_str(1000)
        assert sentence and not sentence.endswith("...") and f"{name} {' '.join(sentence.split())}" in flat, name
        first, called, *words = shlex.split(command.example)
        assert first.lstrip("%") == "mlcycle" and called == name, command.example
        assert command.make_context(name, words, obj=Face()).params is not None  # raises click's error for what it does not understand
        assert f"Example:\n  {command.example}\n" in command.get_help(click.Context(command, info_name=name))
    assert set(FIRST) < set(COMMANDS) and len(FIRST) == 5


def test_mlcycle_alone_shows_how_to_begin(tmp_path: Path) -> None:
    "Five commands and where the others are, not all of them; and it makes nothing."
    done = mlcycle(cwd=tmp_path)
    shown = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("mlcycle ")]
    assert done.returncode == 0 and shown == list(FIRST) and "`mlcycle --help` lists all" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_is_no_error(project: Path) -> None:
    "`mlcycle --help | head -1` and the like."
    done = subprocess.run(f"{sys.executable} -m mlcycle runs | true; exit ${{PIPESTATUS[0]}}", shell=True, executable="/bin/bash", cwd=project,
                          capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_the_shell_completes_from_the_store(project: Path) -> None:
    "What bash is told when the tab key is pressed."
    code = "import mlcycle as mlc\nwith mlc.run('baseline', 'churn', capture=False): pass"
    subprocess.run([sys.executable, "-c", code], cwd=project, check=True, timeout=60)

    def complete(line: str) -> str:
        words = line.split(" ")
        found = subprocess.run([sys.executable, "-m", "mlcycle"], cwd=project, capture_output=True, text=True, timeout=60,
                               env={**os.environ, "_MLCYCLE_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)})
        return found.stdout

    assert "baseline" in complete("mlcycle show base")
    assert "churn" in complete("mlcycle runs -e ch")
    assert "rollback" in complete("mlcycle rol")
    assert not (project / "elsewhere").exists()


def test_bash_completes_beyond_an_at_sign(project: Path, tmp_path: Path) -> None:
    "In a real bash: an alias after `@`, a version after `/`, and the words after such a reference as ever."
    pexpect = pytest.importorskip("pexpect")
    with connect(project / ".mlcycle" / "mlcycle.db") as store:
        run = runs.create(store, "e", "baseline")
        manifest = artifacts.put_bytes(store, run, b"{}", "model/manifest.json", "model")
        models.create_version(store, "biopsy", run, manifest.digest, "sklearn")
        models.move_alias(store, "biopsy", "champion", 1)
    (project / "samples").mkdir()
    (project / "complete.sh").write_text(mlcycle("completion", "bash", cwd=project).stdout)
    folder = Path(sys.executable).parent
    bash = pexpect.spawn("bash", ["--norc", "--noprofile"], cwd=str(project), encoding="utf-8", timeout=120,
                         env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PS1": "ready> ", "INPUTRC": "/dev/null"})
    bash.expect_exact("ready> ")
    bash.sendline("bind 'set enable-bracketed-paste off'; source complete.sh; PS1='re''ady2> '")
    bash.expect_exact("ready2> ")
    for typed, whole in (("predict biopsy@", "biopsy@champion"), ("predict biopsy@ch", "biopsy@champion"), ("show biopsy/", "biopsy/1"),
                         ("predict biopsy@champion samp", "biopsy@champion samples/"), ("promote bio", "psy"),
                         ("artifacts --only=x base", "--only=x baseline")):
        bash.send(f"mlcycle {typed}\t")
        bash.expect_exact(whole)
        bash.sendcontrol("u")
        bash.sendline("")
        bash.expect_exact("ready2> ")
    bash.close(force=True)


def test_completion_makes_no_store(tmp_path: Path) -> None:
    "Pressing the tab key in any folder must leave nothing behind."
    subprocess.run([sys.executable, "-m", "mlcycle"], cwd=tmp_path, capture_output=True, timeout=60,
                   env={**os.environ, "_MLCYCLE_COMPLETE": "bash_complete", "COMP_WORDS": "mlcycle show x", "COMP_CWORD": "2"})
    assert list(tmp_path.iterdir()) == []


def test_runs_are_kept_in_the_project_of_their_notebook(tmp_path: Path) -> None:
    "Whatever folder a command is started in: `run`, `map` and `tune` keep their runs beside the notebook, a new store says where it is, once."
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    (project / "deep").mkdir(parents=True)
    elsewhere.mkdir()
    (project / "pyproject.toml").write_text("")
    cells = [nbformat.v4.new_code_cell("x = 1  # tune: int(1, 9)", id="p", metadata={"tags": ["parameters"]}),
             nbformat.v4.new_code_cell("import mlcycle as mlc; mlc.log_metric('m', x)", id="s")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), project / "deep" / "train.ipynb")
    nbformat.write(nbformat.v4.new_notebook(cells=cells), elsewhere / "alone.ipynb")
    (elsewhere / "x.csv").write_text("x\n2\n")
    there = str(Path("..", "project", "deep", "train.ipynb"))
    first = mlcycle("run", there, cwd=elsewhere)
    assert first.returncode == 0 and first.stderr.count(f"A new store: {project / '.mlcycle'}") == 1, first.stderr
    for words in (("run", there), ("map", there, "x.csv"), ("tune", there, "-m", "m", "-n", "1")):
        done = mlcycle(*words, cwd=elsewhere)
        assert done.returncode == 0 and "A new store" not in done.stderr and f"project {project}" in done.stderr, (words, done.stderr)
    assert not (elsewhere / ".mlcycle").exists() and mlcycle("runs", cwd=elsewhere).returncode == 2
    with open_store(project / ".mlcycle" / "mlcycle.db") as store:
        assert sorted(Counter(row.kind for row in page(store)).items()) == [("notebook", 4), ("study", 1), ("sweep", 1)]
    alone = mlcycle("run", "alone.ipynb", cwd=elsewhere)  # no project: the folder it was started in, as before
    assert f"A new store: {elsewhere / '.mlcycle'}" in alone.stderr and (elsewhere / ".mlcycle" / "mlcycle.db").exists()


def test_the_demo_in_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    "One line that says where and what to do, and nothing is left behind."
    (tmp_path / "file").write_text("")
    done = mlcycle("demo", "--dir", "file/demo", cwd=tmp_path)
    assert done.returncode == 2 and "cannot be written to file/demo" in done.stderr and "--dir" in done.stderr and done.stderr.count("\n") <= 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_rounding_is_no_difference(tmp_path: Path) -> None:
    "Metrics that differ in their last digits are the same; a param that differs in them is another param, and is shown so."
    store = connect(tmp_path / "mlcycle.db")
    for name, auc, rate in (("a", 0.9974200206398349, 0.1), ("b", 1.0, 0.1), ("c", 0.9974200206398348, 0.10000000000000002)):
        with mlc.run(name, params={"rate": rate}, capture=False) as run:
            run.log_metric("auc", auc)
            run.log_metric("tiny", {"a": 1e-9, "b": 2e-9, "c": 1e-9}[name])
    compared = compare(store, "a", "b", "c")
    (auc, tiny), (rate,) = compared.metrics, compared.params
    assert auc.differs and tiny.differs and rate.differs and not compare(store, "a", "c").metrics[0].differs
    text = repr(compare_view(store, compared))
    row = next(line for line in text.splitlines() if line.strip().startswith("auc"))
    assert row.split() == ["auc", "0.9974", "≠", "1.0", "0.9974"] and "0.10000000000000002" in text
    assert [metric["differs"] for metric in compare(store, "a", "c").data()["metrics"]] == [False, False]


def test_a_notebook_has_one_name_wherever_it_is_started(project: Path) -> None:
    "Runs of one notebook that were started from two folders are runs of the same notebook: nothing of it differs."
    (project / "deep").mkdir()
    write_notebook(project / "deep" / "train.ipynb", "x = 1")
    for folder, path in ((project, "deep/train.ipynb"), (project.parent, f"{project.name}/deep/train.ipynb"), (project / "deep", "train.ipynb")):
        done = mlcycle("run", path, cwd=folder)
        assert done.returncode == 0, done.stderr
    with open_store(project / ".mlcycle" / "mlcycle.db") as store:
        assert [facts.tags(store, to_run(row))["notebook"] for row in page(store)] == ["deep/train.ipynb"] * 3
