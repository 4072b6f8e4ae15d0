"A run repeated for real: in Git repositories that have moved on, on data that has, in environments that were built from the record."
from __future__ import annotations

import base64

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from mlcycle.errors import NotebookRunError, ReproductionError
from mlcycle.notebooks.execute.runner import run_notebook
from mlcycle.notebooks.reproduce.rebuild import build, environment_in, plan_for
from mlcycle.notebooks.reproduce.log import reproductions
from mlcycle.notebooks.reproduce.runner import reproduce
from mlcycle.store import artifacts, events, facts, models, runs
from mlcycle.track.begin import start
from mlcycle.ui.tree import Face, invoke
from mlcycle.ui.widgets.detail_pages import VersionView


def git(folder: Path, *words: str) -> str:
    "Plain git, as the user would call it."
    done = subprocess.run(["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def footprint(top: Path) -> dict[str, Any]:
    "Everything that belongs to the user: files, index, HEAD, branches, reflogs, work trees."
    inside = [*(top / ".git" / "logs").rglob("*"), *(top / ".git" / "refs" / "heads").rglob("*"), top / ".git" / "index", top / ".git" / "HEAD"]
    files = [path for path in (*top.rglob("*"), *inside) if path.is_file() and "mlcycle" not in path.name and ".git" not in path.parts[:-2]]
    kept = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in [*files, *(p for p in inside if p.is_file())]
            if "artifacts" not in path.parts}
    return kept | {"worktrees": git(top, "worktree", "list"), "left": str(sorted((top / ".git").glob("worktrees/*")))}


@pytest.fixture
def repo(project):
    "A repository whose store Git ignores, with a module, ignored data and a notebook in a folder of its own."
    top = project.folder
    git(top, "init", "-q", "-b", "main")
    (top / ".gitignore").write_text("mlcycle.db*\nartifacts/\n*.csv\n__pycache__/\n")
    (top / "features.py").write_text("def window(): return 7\n")
    (top / "work").mkdir()
    (top / "work" / "rides.csv").write_text("day,rides\n1,16\n2,40\n")
    git(top, "add", ".")
    git(top, "commit", "-qm", "First")
    return project


TRAIN = ("import mlcycle as mlc, pathlib, features", {"source": "day = None\nlr = 0.1", "tags": ["parameters"]},
         "mlc.log_input('rides.csv', 'rides')\nrides = [int(line.split(',')[1]) for line in pathlib.Path('rides.csv').read_text().split()[1:]]",
         "for step in range(3):\n    mlc.log_metric('loss', sum(rides) * lr / features.window() / (step + 1))",
         "mlc.log_text(day.isoformat(), 'day.txt')\nmlc.log_metric('fit_seconds', __import__('time').time())", "features.window(), day")


def test_the_run_comes_back_although_the_project_moved_on(repo, monkeypatch):
    "Module, notebook and data are those of the run; the user's tree, index, HEAD and reflog are not touched; the verdict stands at the version."
    top, store = repo.folder, repo.store
    monkeypatch.setenv("PYTHONPATH", str(top), prepend=os.pathsep)  # as an editable project: imported from the user's tree
    monkeypatch.syspath_prepend(str(top))
    (top / "features.py").write_text("def window(): return 14\n")  # not committed when it ran
    path = repo.write(*TRAIN, name="work/train.ipynb")
    done = run_notebook(path, {"day": date(2026, 11, 22)}, experiment="rides")
    run = runs.get(store, done.run)
    artifacts.put_bytes(store, run, b"model", "model/weights", "model")
    version = models.create_version(store, "rides", run, "0" * 64, "pickle")

    (top / "features.py").write_text("def window(): return 30\n")
    git(top, "add", "features.py")
    repo.write("raise ValueError('another notebook by now')", name="work/train.ipynb")
    before = footprint(top)
    found = reproduce("rides/1", store=store)
    assert (found.verdict, found.first, found.versions) == ("identical", "", ["rides/1"]), found
    assert {c.what: c.comparison for c in found.conditions if c.what in ("notebook", "files", "data rides (train)", "packages")} == dict.fromkeys(
        ("notebook", "files", "data rides (train)", "packages"), "same")
    assert footprint(top) == before

    again = runs.get(store, found.run)
    assert facts.tags(store, again) == {"notebook": "work/train.ipynb", "reproduces": run.id, "reproduction": "identical"}
    assert repo.artifact(again.id, "day.txt") == b"2026-11-22"  # a date again, not its text
    assert facts.captures(store, again)["git"]["snapshot"] == facts.captures(store, run)["git"]["snapshot"]
    assert reproduce(again.id, store=store).verdict == "identical"  # the repetition is as good a record
    assert events.listing(store, run.id)[0].data["verdict"] == "identical"
    assert [e.data["run"] for e in reproductions(store, version)] == [again.id]
    shown = invoke(["show", "rides/1"], Face())
    assert shown.data["reproductions"][0]["verdict"] == "identical" and "identical on" in repr(shown)
    assert "identical on" in repr(VersionView("rides/1", store).static())

    today = reproduce("rides/1", in_place=True, store=store)
    assert today.verdict == "different" and today.first.startswith("the metric loss at step 0 was 0.4") and today.result().exit_code == 1
    assert next(c for c in today.conditions if c.what == "files").now == "changed: features.py, work/train.ipynb"
    assert "without --in-place" in today.hints[0]
    assert invoke(["show", "rides/1"], Face()).data["reproductions"][0]["first"] == today.first


def test_data_that_is_not_what_it_was_is_refused(repo):
    "Changed and missing data are named before anything runs; --anyway runs, and then the data is what differs first."
    top, store = repo.folder, repo.store
    path = repo.write(*TRAIN, name="work/train.ipynb")
    shutil.copy(top / "features.py", top / "work" / "features.py")
    run = run_notebook(path, {"day": date(2026, 11, 22)}).run
    (top / "work" / "rides.csv").write_text("day,rides\n1,16\n2,41\n")
    with pytest.raises(ReproductionError, match=r"rides.csv is not the data that the run read.* --anyway") as refused:
        reproduce(run, in_place=True, store=store)
    assert refused.value.exit_code == 1 and refused.value.result.result().exit_code == 1
    assert reproduce(run, in_place=True, check=True, store=store).verdict == "not run" and len(repo.runs()) == 1
    anyway = reproduce(run, in_place=True, anyway=True, store=store)
    assert anyway.verdict == "different" and anyway.first.startswith("the data rides (train) was ")

    (top / "work" / "rides.csv").unlink()
    done = subprocess.run([sys.executable, "-m", "mlcycle", "reproduce", run[:8]], cwd=top, env=repo.environment(), capture_output=True, text=True)
    assert done.returncode == 1 and "rides.csv is not here: bring it back" in done.stderr and "missing" in done.stderr, done.stderr


def test_what_differs_first(project, monkeypatch):
    "A notebook that draws without a seed differs each time, a seeded one never; a nudge below the tolerance is within it."
    store = project.store
    free = run_notebook(project.write("import mlcycle as mlc, random", "print('first')", "print('drew', random.random())", name="free.ipynb")).run
    found = reproduce(free, store=store)
    assert found.verdict == "different" and found.first.startswith("cell 3 showed 'drew 0.") and found.compared.compared == (0, 3)
    assert next(c for c in found.conditions if c.what == "files").comparison == "unknown"  # outside Git

    monkeypatch.setenv("NUDGE", "0")
    seeded = run_notebook(project.write(
        "import mlcycle as mlc, os, random\nrandom.seed(7)\nscore = random.random() * (1 + float(os.environ['NUDGE']))",
        "with mlc.run('inner'):\n    for step in range(3):\n        mlc.log_metric('auc', score + step)", "print(f'auc {score:.15f} at {object()}')",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2], [score, 2]);", name="seeded.ipynb")).run
    assert reproduce(seeded, tolerance=0, store=store).verdict == "identical"
    monkeypatch.setenv("NUDGE", "1e-9")
    near = reproduce(seeded, store=store)
    assert near.verdict == "within tolerance" and near.result().exit_code == 0 and near.first.startswith("the metric inner: auc at step 0 was 0.3238")
    assert reproduce(seeded, tolerance=0, store=store).verdict == "different"
    monkeypatch.setenv("NUDGE", "0.5")
    assert [d.number for d in reproduce(seeded, store=store).compared.outputs] == [3, 4]  # the text and the picture


def test_a_failure_is_repeated_too(project):
    "A run that failed and fails again in the same way came out the same; one that fails now and did not then is different."
    path = project.write("import pathlib\npathlib.Path('there').read_text()", "1 / 0")
    (project.folder / "there").write_text("")
    with pytest.raises(NotebookRunError) as failed:
        run_notebook(path)
    assert reproduce(failed.value.result.run, store=project.store).verdict == "identical"
    (project.folder / "there").unlink()
    other = reproduce(failed.value.result.run, store=project.store)
    assert other.verdict == "different" and "failed (cell 2 raised ZeroDivisionError" in other.first and "FileNotFoundError" in other.first


def test_a_run_of_papermill_is_repeated(repo):
    "Papermill's kernels work where Papermill was called, not where the notebook lies; its parameters come back too."
    repo.write({"source": "lr = 0.1", "tags": ["parameters"]}, "import features, pathlib\nlr, features.window(), pathlib.Path('work').is_dir()",
               name="work/train.ipynb", kernelspec={"name": "python3", "display_name": "p", "language": "python"})
    done = repo.papermill("work/train.ipynb", "work/out.ipynb", "-p", "lr", "0.5")
    assert done.returncode == 0, done.stderr
    found = invoke(["reproduce", repo.runs()[0].id[:8], "--json"], Face())
    assert (found.data["verdict"], found.exit_code) == ("identical", 0), found
    assert "0.5, 7, True" in str(repo.executed(found.data["run"])["cells"][-1]["outputs"])


def test_secrets_come_from_where_they_came(project, monkeypatch):
    "A variable that is not set is named before anything runs; with it, the value is found nowhere in the store."
    monkeypatch.setenv("RIDES_TOKEN", "tok-4711-abcdef")
    path = project.write({"source": "token = None", "tags": ["parameters"]}, "print(len(token), token)")
    run = run_notebook(path, secrets={"token": "env:RIDES_TOKEN"}).run
    monkeypatch.delenv("RIDES_TOKEN")
    with pytest.raises(ReproductionError, match="token comes from the variable RIDES_TOKEN: export RIDES_TOKEN=… first"):
        reproduce(run, store=project.store, anyway=True)
    assert len(project.runs()) == 1
    monkeypatch.setenv("RIDES_TOKEN", "tok-4711-abcdef")
    found = reproduce(run, store=project.store)
    assert found.verdict == "identical" and b"tok-4711" not in project.artifact(found.run, "notebook/executed.ipynb")


def test_a_snapshot_that_is_elsewhere_is_named(repo, tmp_path_factory):
    "In another clone the snapshot is missing: nothing runs, and the message says where it is; on today's files it runs."
    path = repo.write("print('here')", name="work/train.ipynb")
    run = run_notebook(path).run
    snapshot = facts.captures(repo.store, runs.get(repo.store, run))["git"]["snapshot"]
    shutil.rmtree(repo.folder / ".git")
    git(repo.folder, "init", "-q")
    with pytest.raises(ReproductionError, match=f"snapshot {snapshot[:10]}, which is not in this repository.*--in-place"):
        reproduce(run, store=repo.store)
    assert reproduce(run, in_place=True, store=repo.store).verdict == "identical"


def test_only_notebooks_and_only_ended_ones(project):
    "A script's run, and a run that goes on, say so; a version whose run was deleted too."
    active = start("script", store=project.store, capture=False)
    for words, said in ((["reproduce", active.id[:8]], "is a script"), (["reproduce", "nothing/1"], "There is no model"),
                        (["reproduce", active.id[:8], "--tolerance", "2"], "relative difference")):
        with pytest.raises(Exception, match=said) as refused:
            invoke(words, Face())
        assert refused.value.exit_code == 2
    active.finish()


def repacked(name: str, folder: Path) -> str:  # Its version
    "A wheel of an installed distribution, so that an environment can be built without a network."
    found = importlib.metadata.distribution(name)
    info = next(path.parts[0] for path in found.files if path.name == "METADATA")
    tags = [line.split(": ")[1].split("-") for line in found.read_text("WHEEL").splitlines() if line.startswith("Tag: ")]
    tag = "-".join(".".join(dict.fromkeys(parts)) for parts in zip(*tags, strict=True))
    own = [path for path in found.files if ".." not in path.parts and not path.is_absolute() and path.suffix != ".pyc"
           and path.name not in ("RECORD", "INSTALLER", "direct_url.json", "REQUESTED")]
    with zipfile.ZipFile(folder / f"{info.removesuffix('.dist-info')}-{tag}.whl", "w") as wheel:
        lines = []
        for path in own:
            data = found.locate_file(path).read_bytes()
            wheel.writestr(str(path), data)
            lines.append([str(path), "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode(), len(data)])
        with wheel.open(f"{info}/RECORD", "w") as record:
            record.write("\n".join(",".join(map(str, line)) for line in [*lines, [f"{info}/RECORD", "", ""]]).encode())
    return found.version


def closure(*names: str) -> list[str]:
    "What some distributions need, by their own metadata."
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found, queue = set(), list(names)
    while queue:
        name = queue.pop()
        if name in found:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or ():
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                queue.append(canonicalize_name(need.name))
    return sorted(found)


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    "A folder of wheels that stands for a package index, for pip and uv alike; `ridesold` is only there."
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "ridesold-1.0-py3-none-any.whl", "w") as wheel:
        info = "ridesold-1.0.dist-info"
        wheel.writestr("ridesold.py", "window = 7\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: ridesold\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", str(wheels)), ("UV_OFFLINE", "1"), ("UV_NO_INDEX", "1"),
                        ("UV_FIND_LINKS", str(wheels)), ("XDG_CACHE_HOME", str(tmp_path / "cache"))):
        monkeypatch.setenv(name, value)
    return wheels


@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_either_installer_builds(installer, index, needs, tmp_path, monkeypatch):
    "With uv where it is installed, with pip where it is not: the same environment, and its error when something is not to be had."
    needs("uv", installer == "pip" or shutil.which("uv"), "pip install uv")
    if installer == "pip":
        monkeypatch.setenv("PATH", str(tmp_path))  # no uv to be found
    held = {"python": {"version": "3.{}.{}".format(*sys.version_info[1:3])}, "distributions": [{"name": "ridesold", "version": "1.0"}]}
    built = environment_in(build(plan_for(held)))
    assert {each["name"]: each["version"] for each in built["distributions"]}["ridesold"] == "1.0"
    held["distributions"] += [{"name": "nowhere", "version": "9.9"}]
    with pytest.raises(ReproductionError, match=rf"^{installer} could not install what the run used: .*nowhere"):
        build(plan_for(held))
    assert len(list((tmp_path / "cache" / "mlcycle" / "environments").iterdir())) == 1  # nothing half built is left


def test_a_limit_that_passes_is_no_verdict(project):
    "It says nothing about the run, and nothing is written down."
    run = run_notebook(project.write("print(1)", "import pathlib, time\ntime.sleep(60 if pathlib.Path('slow').exists() else 0)")).run
    (project.folder / "slow").touch()
    with pytest.raises(ReproductionError, match="took longer than 2 s, so that nothing can be said"):
        reproduce(run, cell_timeout=2, store=project.store)
    assert reproductions(project.store, runs.get(project.store, run)) == []


def test_the_environment_is_built_from_the_record(project, index, tmp_path):
    "A package in another version by now, and one that is gone: the fresh environment has what the run had, and is used again."
    held = [{"name": name, "version": repacked(name, index)} for name in closure("ipykernel", "sqlalchemy", "alembic", "fsspec", "psutil")]
    path = project.write("import mlcycle as mlc, ridesold", "mlc.log_metric('window', ridesold.window)")
    (project.folder / "ridesold.py").write_text("window = 7\n")  # as if it had been installed
    run = runs.get(project.store, run_notebook(path).run)
    (project.folder / "ridesold.py").unlink()
    document = json.loads(project.artifact(run.id, "environment.json"))
    document["distributions"] = [*held, {"name": "ridesold", "version": "1.0"}, {"name": "mlcycle", "version": "0.0.1"}]
    artifacts.put_bytes(project.store, run, json.dumps(document).encode(), "environment.json", "environment")

    assert "No module named 'ridesold'" in reproduce(run.id, store=project.store).first
    found = reproduce(run.id, fresh_env=True, store=project.store)
    assert found.verdict == "identical", found
    assert {c.what: c.comparison for c in found.conditions}.get("packages") == "same", found.looked()
    noted = json.loads(project.artifact(found.run, "environment.json"))
    assert {"ridesold": "1.0"}.items() <= {each["name"]: each["version"] for each in noted["distributions"]}.items()
    (built,) = (tmp_path / "cache" / "mlcycle" / "environments").iterdir()
    before = (built / "requirements.txt").stat().st_mtime_ns
    assert reproduce(run.id, fresh_env=True, store=project.store).verdict == "identical"
    assert (built / "requirements.txt").stat().st_mtime_ns == before  # used again

    document["distributions"] += [{"name": "nowhere", "version": "9.9", "url": "file:///no/such/folder", "editable": True}]
    artifacts.put_bytes(project.store, run, json.dumps(document).encode(), "environment.json", "environment")
    with pytest.raises(ReproductionError, match=r"nowhere 9\.9 was installed from /no/such/folder, which is gone"):
        reproduce(run.id, fresh_env=True, store=project.store)
