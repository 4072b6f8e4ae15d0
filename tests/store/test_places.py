"Where a store lies: in folders of any name, on disks that can only be read, and what killed processes leave beside it."
from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import mlcycle as mlc
from mlcycle.config import sqlite_path, sqlite_url
from mlcycle.errors import DataError, StoreError
from mlcycle.scratch import scratch_folder, sweep
from mlcycle.store import artifacts, metrics, opening, runs
from mlcycle.store.check import fsck
from mlcycle.store.connect import open_store
from mlcycle.store.gc import gc
from mlcycle.store.opening import backup

FORMER = Path(__file__).parent / "former"
folder_names = st.text(st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=folder_names)
@example("feature%2Fx")
@example("done?")
@example("a::b")
@example("#1 [x] {y} *")
@example("größe 100 %20")
@example("~")
@example("file:")
def test_a_folder_is_a_folder(tmp_path: Path, name: str) -> None:
    "The store of a project lies in the project, however its folder is called; this process and another one find it there."
    project = tmp_path / "projects" / name
    shutil.rmtree(project.parent, ignore_errors=True)
    project.mkdir(parents=True)
    assert sqlite_path(sqlite_url(project / "a.db")) == (project / "a.db").resolve()
    with open_store(project / "[runs].db") as store:
        run = runs.create(store, "e")
        artifacts.put_bytes(store, run, b"text", "a.txt")
        assert Path(store.settings.artifacts) == project.resolve() / "artifacts" and store.db.where == str(project.resolve() / "[runs].db")
        with open_store(store.environment["MLCYCLE_STORE"], store.environment["MLCYCLE_ARTIFACTS"]) as again:
            assert again.blobs.read(artifacts.get(again, run, "a.txt").digest) == b"text"
        copy = backup(store.db, "0001")
    assert copy.parent == project.resolve() and {path.name for path in tmp_path.rglob("*.db*")} == {"[runs].db", copy.name}
    assert list(tmp_path.rglob("sha256")) == [project / "artifacts" / "sha256"]


@pytest.mark.parametrize("name", ["feature%2Fx", "done?", "a::b"])
def test_commands_find_the_store_of_such_a_folder(tmp_path: Path, name: str) -> None:
    "From the shell too, with the settings' default."
    project = tmp_path / name
    project.mkdir()
    (project / "pyproject.toml").touch()
    code = "import mlcycle as mlc\nwith mlc.run('a', 'e', capture=False) as run: run.log_text('x', 'x.txt')"
    subprocess.run([sys.executable, "-c", code], cwd=project, check=True)
    assert (project / ".mlcycle" / "mlcycle.db").is_file() and (project / ".mlcycle" / "artifacts").is_dir()
    listed = subprocess.run([sys.executable, "-m", "mlcycle", "runs", "--json"], cwd=project, capture_output=True, text=True)
    assert [row["name"] for row in json.loads(listed.stdout)] == ["a"] and len(list(tmp_path.rglob("*.db"))) == 1


@pytest.fixture
def archive(tmp_path: Path, needs: Callable[..., None]) -> Iterator[Callable[[], Path]]:
    "A folder that can be mounted over itself so that it can only be read."
    folder = tmp_path / "archive"
    folder.mkdir()

    def protect() -> Path:
        done = [subprocess.run(["mount", *words, str(folder)], capture_output=True, text=True)
                for words in (["--bind", str(folder)], ["-o", "remount,bind,ro"])]
        needs("mounting", all(step.returncode == 0 for step in done), "run the tests as root in a container that may mount")
        return folder

    yield protect
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


@pytest.mark.parametrize("left_open", [False, True], ids=["closed", "with a log"])
def test_a_store_that_can_only_be_read_is_read(tmp_path: Path, archive: Callable[[], Path], left_open: bool) -> None:
    "Runs, points, artifacts, queries and checks work on a read-only disk; writing says what is wrong, and nothing is changed."
    folder = tmp_path / "archive"
    store = open_store(folder / "runs.db")
    run = runs.create(store, "e", "baseline")
    metrics.log(store, run.pk, {"loss": 0.5}, {"loss": 0})
    artifacts.put_bytes(store, run, b"kept", "kept.txt")
    runs.finish(store, run)
    if not left_open:
        store.close()
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    archive()
    with open_store(folder / "runs.db") as read:
        again = runs.resolve(read, "baseline")
        assert again.status == "finished" and metrics.latest(read, again) == {"loss": 0.5} and len(mlc.runs("metrics.loss < 1", store=read)) == 1
        assert read.blobs.read(artifacts.get(read, again, "kept.txt").digest) == b"kept" and fsck(read).problems == () and gc(read).contents == ()
        for write in (lambda: metrics.log(read, again.pk, {"loss": 0.1}, {"loss": 1}), lambda: runs.create(read, "e")):
            with pytest.raises(StoreError, match="cannot be written"):
                write()
        assert len(metrics.history(read, again, "loss")) == 1
    listed = subprocess.run([sys.executable, "-m", "mlcycle", "runs", "--json"], cwd=tmp_path, capture_output=True, text=True,
                            env={**os.environ, "MLCYCLE_STORE": str(folder / "runs.db")})
    assert [row["status"] for row in json.loads(listed.stdout)] == ["finished"], listed.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and not path.name.endswith("-shm")} == {
        name: content for name, content in before.items() if not name.endswith("-shm")}
    store.close()


def test_a_reader_sees_what_the_owner_adds(tmp_path: Path, archive: Callable[[], Path]) -> None:
    "SQLite is told that the file does not change; so a connection serves one query, and the next one sees what came since."
    with open_store(tmp_path / "archive" / "runs.db") as store:
        runs.create(store, "e", "first")
    shutil.copytree(tmp_path / "archive", tmp_path / "copy")
    with open_store(tmp_path / "copy" / "runs.db") as store:
        runs.create(store, "e", "second")
    folder = archive()
    with open_store(folder / "runs.db") as read:
        assert runs.resolve(read, "first").name == "first"
        subprocess.run(["umount", "-l", str(folder)], check=True)
        os.replace(tmp_path / "copy" / "runs.db", folder / "runs.db")
        archive()
        assert runs.resolve(read, "second").name == "second"


SCRATCH = """
import sys
from mlcycle.scratch import scratch_folder
with scratch_folder("test") as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_folders_of_killed_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "What a killed process leaves goes; what is in use, what is new, what is a link and what belongs to something else stays."
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    processes = [subprocess.Popen([sys.executable, "-c", SCRATCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                  env={**os.environ, "TMPDIR": str(tmp_path)}) for _ in range(2)]
    used, left = (Path(process.stdout.readline().strip()) for process in processes)
    processes[1].send_signal(signal.SIGKILL)
    processes[1].wait(120)
    (left / "model.skops").write_bytes(b"weights")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (tmp_path / "mlcycle-test-link").symlink_to(tmp_path / "precious")
    (tmp_path / "mlcycle-other-1").mkdir()
    with scratch_folder("test"):
        assert left.exists(), "it is new: its process may not have locked it yet"
        for folder in (used, left, tmp_path / "precious", tmp_path / "mlcycle-other-1"):
            os.utime(folder, (0, 0))
        os.utime(tmp_path / "mlcycle-test-link", (0, 0), follow_symlinks=False)
        assert sweep("test") == [left]
    processes[0].communicate("")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlcycle-other-1", "mlcycle-test-link", "precious"]
    assert (tmp_path / "precious" / "file").exists()


MIGRATING = """
import os, sqlite3, sys
from mlcycle.store import opening
real = sqlite3.connect
class Slow(sqlite3.Connection):
    def backup(self, target, **options):
        super().backup(target, pages=1, progress=lambda *state: (os.write(1, b"."), sys.stdin.read(1)))
opening.sqlite3 = type("module", (), {**vars(sqlite3), "connect": staticmethod(lambda *args, **options: real(*args, factory=Slow, **options))})
opening.open_database(sys.argv[1])
"""


def test_a_copy_has_its_name_when_it_is_complete(tmp_path: Path) -> None:
    "A migration that is killed while it copies the store leaves no half copy under the final name; the next one removes what it left."
    path = tmp_path / "runs.db"
    with tarfile.open(FORMER / "store-0002.tar.gz") as archive:
        file = next(member for member in archive.getmembers() if member.name.endswith(".db"))
        path.write_bytes(archive.extractfile(file).read())
    process = subprocess.Popen([sys.executable, "-c", MIGRATING, sqlite_url(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.read(1) == b"."
    process.kill()
    process.wait(120)
    left = [name for name in os.listdir(tmp_path) if "backup" in name]
    assert left and all(name.endswith((".part", ".part-journal")) for name in left)
    opening.open_database(sqlite_url(path)).close()
    copies = [name for name in os.listdir(tmp_path) if "backup" in name]
    assert len(copies) == 1 and copies[0].endswith(".backup")
    with sqlite3.connect(tmp_path / copies[0]) as con:
        assert con.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_long_arguments_are_read_once() -> None:
    "Looking for secrets takes time in proportion to an argument: long ones of every awkward kind pass, and a secret at their end is hidden."
    from mlcycle.track.capture.code import redact

    for piece in ("y", "y-", "y.", "eyJ", "eyJ.", "a=", "a:", "://a:", "' ", '"a', "a ", "-", "ghp_", "AKIA", "password"):
        long = piece * (200_000 // len(piece))
        hidden, = redact([f"{long} api_key=hunter22"])
        assert "hunter22" not in hidden  # read again from each character, it would take hours


def test_one_value_does_not_hide_the_others(tmp_path: Path) -> None:
    "What a run may log can be listed, shown, compared and written to a file, with all other runs; what cannot be is refused."
    odd = {"file": os.fsdecode(b"caf\xe9.csv"), "nested": [{os.fsdecode(b"\xe9"): os.fsdecode(b"\xff")}], "large": 10**3999, "nan": float("nan"),
           "control": "\x1b[31m\0", "empty": ""}
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    ring: dict = {}
    ring["self"] = ring
    with mlc.connect(tmp_path / "runs.db") as store:
        with mlc.run("sound", "e", {"large": 1, "file": "a.csv"}, capture=False):
            pass
        with mlc.run("odd", "e", odd, capture=False) as run:
            for bad in (10**5000, deep, ring, [10**5000]):
                with pytest.raises(DataError, match=r"Log|Give"):
                    run.log_params({"bad": bad})
        assert run.params["file"] == odd["file"] and set(run.params) == set(odd)
        table = mlc.runs()
        assert table["params.file"].tolist() == ["caf\\udce9.csv", "a.csv"] and len(table.to_csv()) > 100
        assert all(text.encode() for text in (repr(table), table.to_json(date_format="iso"), table.to_html()))
        environment = {**os.environ, **store.environment}
    mlc.connect(None)
    for words in (["runs"], ["runs", "--json"], ["show", "odd"], ["show", "odd", "--json"], ["compare", "sound", "odd"], ["events"], ["fsck"]):
        done = subprocess.run([sys.executable, "-m", "mlcycle", *words], env=environment, capture_output=True, cwd=tmp_path)
        assert done.returncode == 0 and done.stdout, (words, done.stderr.decode())
