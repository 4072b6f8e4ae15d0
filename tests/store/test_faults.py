"What the store promises when processes are killed, disks fill up and files are damaged: each promise is broken on purpose here."
from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlcycle
import pytest
from mlcycle.entities import Run
from mlcycle.errors import ConfigError, StoreError, StoreFormatError, StoreFullError
from mlcycle.store import artifacts, metrics, runs, schema
from mlcycle.store.check import fsck
from mlcycle.store.connect import Store, open_store
from mlcycle.store.gc import gc
from mlcycle.store.summary_check import differing
from sqlalchemy import func, select, text

from tests.conftest import need

ENV = os.environ | {"PYTHONPATH": str(Path(mlcycle.__file__).resolve().parent.parent)}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    "A store of its own, with one run in it to write to."
    with open_store(tmp_path / "store" / "mlcycle.db") as opened:
        yield opened


def child(code: str, *args: object) -> subprocess.Popen:
    "A process that says what it has done by writing to its standard output."
    imports = ("import os, sys", "from pathlib import Path", "from mlcycle.store import artifacts, metrics, runs",
               "from mlcycle.store.connect import open_store")
    command = [sys.executable, "-c", "\n".join((*imports, code)), *map(str, args)]
    return subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV)


def hear(process: subprocess.Popen, size: int) -> bytes:
    "Wait until a process has said so many bytes. Nothing is read ahead, so that `kill` gets all the rest."
    said = b""
    while len(said) < size:
        piece = process.stdout.read(size - len(said))
        assert piece, process.stderr.read().decode()
        said += piece
    return said


def kill(process: subprocess.Popen) -> bytes:
    "SIGKILL, and what the process had said until then."
    process.kill()
    out, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err.decode()
    return out


def points(store: Store, run: Run, name: str) -> list[float]:
    "Values of a metric by step."
    return [point.value for point in metrics.history(store, run, name)]


# Killed processes

LOGGING = """
store = open_store(sys.argv[1])
run = runs.get(store, sys.argv[2])
os.write(1, b"r")
step = 0
while True:
    metrics.log(store, run.pk, {"loss": float(step)}, {"loss": step})
    os.write(1, b".")
    step += 1
"""


def test_sigkill_loses_no_acknowledged_point(store: Store, soak: int) -> None:
    "A point is stored when `log` returns: whatever the moment of the kill, none is missing, none is doubled, none is half there."
    chance = random.Random(20261122 + soak)
    most = 0
    for _ in range(5):
        run = runs.create(store, "killed")
        process = child(LOGGING, store.settings.store.removeprefix("sqlite:///"), run.id)
        hear(process, 2)  # it is ready, and has stored a point
        time.sleep(chance.uniform(0.01, 0.4))
        acknowledged = 1 + kill(process).count(b".")
        stored = points(store, run, "loss")
        assert stored == [float(i) for i in range(len(stored))]
        assert acknowledged <= len(stored) <= acknowledged + 1
        assert metrics.latest(store, run)["loss"] == stored[-1], "point and summary are one transaction"
        most = max(most, acknowledged)
    assert most > 100, "the loop was killed while it was busy"
    assert store.db.all(text("PRAGMA integrity_check")) == [("ok",)]


CROWDED = """
import random
store = open_store(sys.argv[1])
run = runs.get(store, sys.argv[2])
chance = random.Random(sys.argv[3])
os.write(1, b"r")
step = 0
while True:
    step += chance.choice([0, 1, 1, 1, 1, 1, -2])
    value = chance.choice([float("nan"), chance.random()])
    metrics.log(store, run.pk, *({name: x for name in (("loss", "auc") if step % 9 == 4 else ("loss",))} for x in (value, step)))
    os.write(1, b".")
"""


def test_summaries_survive_killed_writers(store: Store, soak: int) -> None:
    "Two processes log the same metrics until they are killed, while a third reads: no summary ever differs from its points."
    chance = random.Random(20261128 + soak)
    run, t, p = runs.create(store, "killed"), schema.metrics.c, schema.points.c
    acknowledged = 0
    for number in range(4):
        writers = [child(CROWDED, store.settings.store.removeprefix("sqlite:///"), run.id, 2 * number + which) for which in range(2)]
        for writer in writers:
            hear(writer, 2)
        counted = []
        for _ in range(chance.randrange(1, 40)):
            at_least = store.db.all(select(func.count()).select_from(schema.points).where(p.name == "loss"))[0][0]
            counted.append(store.db.all(select(t.count).where(t.name == "loss"))[0][0])
            assert counted[-1] >= at_least, "who reads a summary sees each point that was stored before"
        assert counted == sorted(counted)
        acknowledged += sum(1 + kill(writer).count(b".") for writer in writers)
        assert differing(store) == []
    stored = store.db.all(select(func.count()).select_from(schema.points).where(p.name == "loss"))[0][0]
    assert acknowledged <= stored <= acknowledged + 8 and fsck(store).problems == ()


STORING = """
store = open_store(sys.argv[1])
run = runs.get(store, sys.argv[2])
os.write(1, b"r")
artifacts.put_file(store, run, Path(sys.argv[3]), "weights.bin", watch=lambda piece: os.write(1, b"."))
os.write(1, b"done")
"""


def test_sigkill_while_an_artifact_is_written(store: Store, tmp_path: Path) -> None:
    "No half file is visible: not in the run, not by digest. What is left over is found and removed by `gc`."
    big = tmp_path / "weights.bin"
    with big.open("wb") as f:
        f.truncate(256 << 20)
    run = runs.create(store, "killed")
    for pieces in (1, 40):
        process = child(STORING, store.settings.store.removeprefix("sqlite:///"), run.id, big)
        assert hear(process, 1 + pieces) == b"r" + b"." * pieces
        assert b"done" not in kill(process)
    assert artifacts.listing(store, run) == []
    assert list(store.blobs.digests()) == []
    left = gc(store, remove=False, age=0).temporary
    assert len(left) == 2
    assert gc(store, remove=True).temporary == (), "a file that may still be being written is not touched"
    assert gc(store, remove=True, age=0).temporary == left
    folder = Path(store.settings.artifacts)
    assert [p for p in folder.rglob("*") if p.is_file()] == []
    digest = artifacts.put_file(store, run, big, "weights.bin").digest
    assert store.blobs.size(digest) == 256 << 20


CHURNING = """
import random
store = open_store(sys.argv[1])
run = runs.get(store, sys.argv[2])
chance = random.Random(sys.argv[3])
os.write(1, b"r")
for number in range(10**6):
    artifacts.put_bytes(store, run, chance.randbytes(chance.randrange(200_000)), f"{number}.bin")
    os.write(1, b".")
"""


def test_sigkill_at_any_moment_leaves_only_whole_artifacts(store: Store, soak: int) -> None:
    "Between writing, renaming and naming a file there are many moments: in each, what is listed can be read, and nothing acknowledged is missing."
    chance = random.Random(7 + soak)
    for number in range(4):
        run = runs.create(store, "killed")
        process = child(CHURNING, store.settings.store.removeprefix("sqlite:///"), run.id, number)
        hear(process, 1)
        time.sleep(chance.uniform(0.05, 0.3))
        acknowledged = kill(process).count(b".")
        listed = artifacts.listing(store, run)
        assert acknowledged <= len(listed) <= acknowledged + 1
        for artifact in listed:
            assert len(store.blobs.read(artifact.digest)) == artifact.size
    assert not [p for p in fsck(store).problems if p.kind in ("damaged", "missing", "database")]
    gc(store, remove=True, age=0)
    named = {artifact.digest for (run,) in store.db.all(text("SELECT id FROM runs")) for artifact in artifacts.listing(store, runs.get(store, run))}
    assert {digest for digest, _ in store.blobs.digests()} == named


# Many processes

WRITING = """
store = open_store(sys.argv[1])
run = runs.create(store, "together")
os.write(1, b"r")
sys.stdin.read(1)
for step in range(2000):
    metrics.log(store, run.pk, {"loss": step * 0.5}, {"loss": step})
os.write(1, run.id.encode())
"""


def test_eight_processes_at_once(store: Store) -> None:
    "Eight writers on one SQLite file, 2,000 points each: 16,000 points, and nobody is told that the database is locked."
    path = store.settings.store.removeprefix("sqlite:///")
    writers = [child(WRITING, path) for _ in range(8)]
    for writer in writers:
        assert hear(writer, 1) == b"r"
    for writer in writers:
        writer.stdin.write(b"!")
    done = [writer.communicate(timeout=120) for writer in writers]
    assert [(writer.returncode, err) for writer, (_, err) in zip(writers, done, strict=True)] == [(0, b"")] * 8
    histories = [points(store, runs.get(store, out.decode()), "loss") for out, _ in done]
    assert histories == [[step * 0.5 for step in range(2000)]] * 8


def test_eight_processes_create_one_store_at_once(tmp_path: Path) -> None:
    "The first run of a parameter sweep: nobody has made the store yet, everybody does."
    path = tmp_path / "new" / ".mlcycle" / "mlcycle.db"
    code = "run = runs.create(open_store(sys.argv[1]), 'first')\nos.write(1, run.id.encode())"
    makers = [child(code, path) for _ in range(8)]
    done = [maker.communicate(timeout=120) for maker in makers]
    assert [(maker.returncode, err) for maker, (_, err) in zip(makers, done, strict=True)] == [(0, b"")] * 8
    with open_store(path) as store:
        assert {runs.get(store, out.decode()).experiment for out, _ in done} == {"first"}
    assert not [p.name for p in path.parent.iterdir() if "part" in p.name]


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path, needs: Callable[..., None]) -> Iterator[Path]:
    "A file system of 8 MiB."
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "mlcycle-test", str(disk)], capture_output=True, text=True)
    needs("a small tmpfs", mounted.returncode == 0, f"run the tests as root in a container that may mount ({mounted.stderr.strip()})")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> Path:
    "A file that takes all the space that is left."
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as f:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    f.write(b"x" * size)
            except OSError:
                pass
    return filler


def test_full_disk(small_disk: Path) -> None:
    "One clear error, no lost point, no half file; the store still opens, and takes writes again when there is space."
    store = open_store(small_disk / "mlcycle.db")
    run = runs.create(store, "full")
    kept = artifacts.put_bytes(store, run, b"kept", "kept.txt")
    filler, acknowledged = fill(small_disk), 0
    with pytest.raises(StoreFullError, match=r"No space left .* Free some space"):
        for step in range(100_000):
            metrics.log(store, run.pk, {"loss": float(step)}, {"loss": step})
            acknowledged += 1
    with pytest.raises(StoreFullError, match=r"No space left .* Free some space"):
        artifacts.put_bytes(store, run, os.urandom(3 << 20), "more.bin")
    assert [a.name for a in artifacts.listing(store, run)] == ["kept.txt"]
    assert points(store, run, "loss") == [float(i) for i in range(acknowledged)]

    process = child("store = open_store(sys.argv[1])\nrun = runs.get(store, sys.argv[2])\nprint(len(metrics.history(store, run, 'loss')))",
                    small_disk / "mlcycle.db", run.id)
    out, err = process.communicate()
    assert (out.split(), process.returncode) == ([str(acknowledged).encode()], 0), err.decode()

    filler.unlink()
    metrics.log(store, run.pk, {"loss": -1.0}, {"loss": acknowledged})
    artifacts.put_bytes(store, run, b"more", "more.bin")
    runs.finish(store, run)
    assert points(store, run, "loss")[-1] == -1.0 and store.blobs.read(kept.digest) == b"kept"
    assert gc(store, age=0).temporary == ()
    assert fsck(store).sound
    store.close()


def test_new_store_on_a_full_disk(small_disk: Path) -> None:
    "A store that cannot be made is not half made."
    filler = fill(small_disk)
    (small_disk / ".mlcycle").mkdir()
    with pytest.raises(StoreFullError, match="No space left"):
        open_store(small_disk / ".mlcycle" / "mlcycle.db")
    assert list((small_disk / ".mlcycle").iterdir()) == []
    filler.unlink()
    with open_store(small_disk / ".mlcycle" / "mlcycle.db") as store:
        assert runs.create(store, "now").status == "running"
    assert (small_disk / ".mlcycle" / ".gitignore").read_text() == "*\n"


def test_store_closed_and_opened_on_a_full_disk(small_disk: Path) -> None:
    "The process that filled the disk has ended; a person wants to see its runs before anything is deleted."
    with open_store(small_disk / "mlcycle.db") as store:
        run = runs.create(store, "full")
        metrics.log(store, run.pk, {"loss": 0.5}, {"loss": 0})
    filler = fill(small_disk)
    try:
        with open_store(small_disk / "mlcycle.db") as store:
            assert points(store, run, "loss") == [0.5]
    except StoreFullError:  # SQLite needs 32 KiB beside the file even for reading; then the error must say what to do, and nothing else
        pass
    filler.unlink()
    with open_store(small_disk / "mlcycle.db") as store:
        assert points(store, run, "loss") == [0.5]


def test_read_only_store(store: Store, tmp_path: Path) -> None:
    "A store that may not be written says so, instead of a driver's error."
    path = Path(store.settings.store.removeprefix("sqlite:///"))
    run = runs.create(store, "closed")
    store.close()
    code = """
from mlcycle.errors import StoreError
metrics.log(open_store(sys.argv[3]), 1, {}, {})
if os.geteuid() == 0:  # Root may write everything
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    metrics.log(open_store(sys.argv[1]), int(sys.argv[2]), {"loss": 1.0}, {"loss": 0})
except StoreError as e:
    print(e)
"""
    for folder in (path.parent, tmp_path, *list(tmp_path.parents)[:3]):  # with xdist one more
        folder.chmod(0o755)
    path.chmod(0o444)
    path.parent.chmod(0o555)
    out, err = child(code, path, run.pk, tmp_path / "warm-up.db").communicate()
    path.parent.chmod(0o755)
    assert b"cannot be written" in out and b"permissions" in out, (out, err)


# Damaged and foreign files


def _sqlite_of_another(path: Path) -> None:
    with sqlite3.connect(path) as con:
        con.execute("CREATE TABLE experiments (id INTEGER)")
    con.close()


def _wal_of_another(path: Path) -> None:
    con = sqlite3.connect(path)
    con.execute("PRAGMA journal_mode=WAL")
    con.execute("CREATE TABLE runs (id INTEGER)")
    con.commit()
    shutil.copy(path.with_name(path.name + "-wal"), path.with_name("kept-wal"))
    con.close()


def _store(path: Path, keep: Callable[[int], int] | None = None, junk: slice | None = None, swap: tuple[bytes, bytes] = (b"", b"")) -> None:
    with open_store(path) as store:
        run = runs.create(store, "old")
        for step in range(200):
            metrics.log(store, run.pk, {"loss": float(step)}, {"loss": step})
    data = bytearray(path.read_bytes())
    if keep:
        del data[keep(len(data)):]
    if junk:
        data[junk] = bytes(len(range(*junk.indices(len(data)))))
    path.write_bytes(data.replace(*swap) if swap[0] else data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("metric,value\nloss,0.5\n"),
    "zeros": lambda path: path.write_bytes(bytes(8192)),
    "picture": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + os.urandom(5000)),
    "one byte": lambda path: path.write_bytes(b"S"),
    "header cut": lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(20)),
    "sqlite of another": _sqlite_of_another,
    "sqlite of another, in WAL mode": _wal_of_another,
    "cut to one page": lambda path: _store(path, keep=lambda size: 4096),
    "cut in half": lambda path: _store(path, keep=lambda size: size // 2),
    "cut by one byte": lambda path: _store(path, keep=lambda size: size - 1),
    "schema overwritten": lambda path: _store(path, junk=slice(100, 4096)),
    "schema with bytes that are no text": lambda path: _store(path, swap=(b"CREATE TABLE runs", b"CREATE T\x9bBLE runs")),
}


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    "Names, contents and times of all files in a folder."
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_or_foreign_file_is_refused_and_not_touched(tmp_path: Path, damage: str) -> None:
    "Somebody's file at the store's address: not one byte of it changes and nothing appears beside it."
    path = tmp_path / "mlcycle.db"
    DAMAGE[damage](path)
    before = everything(tmp_path)
    with pytest.raises(StoreFormatError, match=r"mlcycle\.db"):
        open_store(path)
    assert everything(tmp_path) == before


def test_folder_or_missing_rights_as_store(tmp_path: Path) -> None:
    "An address that is a folder, or below a file, gets a sentence and not a driver's error."
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "file").write_text("x")
    for address in (tmp_path / "folder.db", tmp_path / "file" / "mlcycle.db"):
        with pytest.raises(StoreError, match=r"(?s)folder\.db|file"):
            open_store(address)


def test_damage_inside_an_open_store_is_an_error_of_ours(tmp_path: Path) -> None:
    "Pages overwritten in the middle: whatever is read then must not come as a traceback of the driver."
    path = tmp_path / "mlcycle.db"
    _store(path, junk=slice(8192, None))
    with pytest.raises(StoreError), open_store(path) as store:
        runs.resolve(store, "old")
        store.db.all(text("SELECT * FROM points"))


# Big files

STREAMING = """
import resource
store = open_store(sys.argv[1])
run = runs.create(store, "big")
artifacts.put_bytes(store, run, b"warm up", "small")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
artifact = artifacts.put_file(store, run, Path(sys.argv[2]), "big.bin")
total = 0
with store.blobs.open(artifact.digest) as stream:
    while piece := stream.read(1 << 20):
        total += len(piece)
print(total, artifact.size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_big_file_streams_in_constant_memory(tmp_path: Path, needs: Callable[..., None]) -> None:
    "A gigabyte in and out again: the process may grow by some buffers, not by the file."
    size = 1 << 30
    needs("3 GiB of free space", shutil.disk_usage(tmp_path).free > 3 << 30)
    big = tmp_path / "big.bin"
    with big.open("wb") as f:
        f.truncate(size)
    try:
        out, err = child(STREAMING, tmp_path / "store" / "mlcycle.db", big).communicate(timeout=300)
        assert not err, err.decode()
        total, stored, grown = map(int, out.split())
        assert total == stored == size
        assert grown * (1 if sys.platform == "darwin" else 1024) < 64 << 20
    finally:
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        big.unlink()


def test_file_too_large_for_the_file_system(store: Store, tmp_path: Path) -> None:
    "A limit other than free space (a quota, a maximal file size): one error, nothing left behind."
    code = """
import resource, signal
from mlcycle.errors import ArtifactError
store = open_store(sys.argv[1])
run = runs.create(store, "limited")
resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, resource.RLIM_INFINITY))
try:
    artifacts.put_bytes(store, run, os.urandom(8 << 20), "big.bin")
except ArtifactError as e:
    print(e)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
artifacts.put_bytes(store, run, b"small", "small.bin")
"""
    out, err = child(code, store.settings.store.removeprefix("sqlite:///")).communicate()
    assert not err and b"could not be stored" in out, (out, err)
    assert gc(store, age=0).temporary == ()


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="needs /proc/locks")
def test_opening_once_more_drops_no_lock(tmp_path: Path) -> None:
    "Who opens and closes the file of a store by himself loses the locks of his connections, and the next process to close the store damages it."
    path = tmp_path / "mlcycle.db"

    def locks() -> int:
        here = f":{path.stat().st_ino} "
        return sum(f" {os.getpid()} " in line and here in line for line in Path("/proc/locks").read_text().splitlines())

    with open_store(path) as store, store.db.read() as con:
        con.exec_driver_sql("SELECT count(*) FROM runs").scalar()
        before = locks()
        with open_store(path):
            pass
        assert locks() == before > 0


# What a write survives


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    "The files and folders that the disk was asked to have, in their order; it is asked all the same."
    paths, fsync = [], os.fsync

    def note(descriptor: int) -> None:
        paths.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    return paths


def test_full_durability_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flushed: list[str]) -> None:
    "With `full`, commits are synchronous, and an artifact's content and folders are on the disk before its row; also one that was stored without."
    (tmp_path / "weights.bin").write_bytes(b"weights")
    with open_store(tmp_path / "store" / "mlcycle.db") as normal:
        run = runs.create(normal, "e")
        artifacts.put_file(normal, run, tmp_path / "weights.bin", "weights.bin")
        assert flushed == [] and normal.db.fetch(text("PRAGMA synchronous"), {}) == normal.db.all(text("PRAGMA synchronous")) == [(1,)]
    monkeypatch.setenv("MLCYCLE_DURABILITY", "full")
    with open_store(tmp_path / "store" / "mlcycle.db") as full:
        assert full.db.fetch(text("PRAGMA synchronous"), {}) == full.db.all(text("PRAGMA synchronous")) == [(2,)]
        assert full.environment["MLCYCLE_DURABILITY"] == "full"
        link = artifacts._link
        monkeypatch.setattr(artifacts, "_link", lambda *args: (flushed.append("row"), link(*args)))
        digest = artifacts.put_bytes(full, run, b"new", "new.bin").digest
        folder, path = Path(full.blobs.path(digest)).parent, Path(full.blobs.path(digest))
        content, *folders = flushed[: flushed.index("row")]
        assert Path(content).parent == folder.parent.parent / "tmp" and folders[:3] == [str(folder), str(folder.parent), full.settings.artifacts]
        flushed.clear()
        again = artifacts.put_file(full, run, tmp_path / "weights.bin", "again.bin")
        assert str(Path(full.blobs.path(again.digest))) in flushed[: flushed.index("row")] and path.is_file()
    with open_store(tmp_path / "new" / "mlcycle.db") as new:
        assert str(tmp_path / "new") in flushed and new.db.durability == "full"
    monkeypatch.setenv("MLCYCLE_DURABILITY", "fast")
    with pytest.raises(ConfigError, match="normal or full, not 'fast'"):
        open_store(tmp_path / "store" / "mlcycle.db")


def test_full_durability_on_a_server_that_does_not_wait(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    "A PostgreSQL that answers before its disk has a commit is asked to wait, on every connection."
    url = need("postgresql").new_database()
    with open_store(url, tmp_path / "artifacts") as store:
        store.db.transact((f'ALTER DATABASE "{url.rpartition("/")[2]}" SET synchronous_commit TO off', {}))
    show = text("SHOW synchronous_commit")
    for durability, setting in (("normal", "off"), ("full", "on")):
        monkeypatch.setenv("MLCYCLE_DURABILITY", durability)
        with open_store(url, tmp_path / "artifacts") as store:
            assert store.db.fetch(show, {}) == store.db.all(show) == [(setting,)]


# Checkpoints, and waiting for each other


def test_the_log_stays_short_and_a_fork_may_come_at_any_time(store: Store) -> None:
    "While one thread logs 30,000 points and another one does the checkpoints, forked children log too; the log takes a part of what was written."
    run = runs.create(store, "e")
    log = Path(f"{store.db.where}-wal")
    largest, children = 0, []
    for step in range(30_000):
        metrics.log(store, run.pk, {"loss": float(step)}, {"loss": step})
        if step % 1000 == 999:
            largest = max(largest, log.stat().st_size)
        if step % 5000 == 4999:
            if (pid := os.fork()) == 0:
                try:
                    metrics.log(store, run.pk, {"child": 1.0}, {"child": step})
                finally:
                    os._exit(0)
            children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 6
    assert largest < 80 << 20, "30,000 commits append some 120 MB"
    assert points(store, run, "loss") == [float(step) for step in range(30_000)] and len(points(store, run, "child")) == 6
    for thread in threading.enumerate():
        if thread.name == "mlcycle-checkpoints":
            thread.join(60)  # it ends by itself
            assert not thread.is_alive()
    metrics.log(store, run.pk, {"loss": 0.0}, {"loss": 30_000})
    store.close()
    assert not log.exists()


def test_a_stopped_waiter_holds_up_nobody(store: Store) -> None:
    "A writer that waits and is stopped, as by Ctrl-Z, has no place that others wait for."
    run = runs.create(store, "e")
    code = LOGGING.replace("while True:", "for step in range(1):")
    with store.db.write() as con:
        con.execute(text("SELECT 1"))
        waiting = child(code, store.db.where, run.id)
        hear(waiting, 1)
        waiting.send_signal(signal.SIGSTOP)
    metrics.log(store, run.pk, {"auc": 0.5}, {"auc": 0})
    assert waiting.poll() is None and points(store, run, "loss") == []
    waiting.send_signal(signal.SIGCONT)
    assert waiting.wait(timeout=60) == 0 and points(store, run, "loss") == [0.0]


def test_who_cannot_settle_reads_the_same(store: Store) -> None:
    "While others hold the lock of writers, in another process or in a transaction of one's own, summaries are added up on the fly, then settled."
    run = runs.create(store, "e")
    for step in range(5):
        metrics.log(store, run.pk, {"loss": float(step)}, {"loss": step})
    last = text("SELECT value, count FROM metrics")
    with store.db.write() as con:
        assert metrics.latest(store, run) == {"loss": 4.0} and store.db.all(last) == [(4.0, 5)]
        con.execute(text("SELECT 1"))
    assert store.db.all(select(schema.unsettled)) == [(run.pk, "loss", 1)]
    with store.db.transaction():
        assert store.db.all(last) == [(4.0, 5)]
    metrics.log(store, run.pk, {"loss": 9.0}, {"loss": 5})
    with store.db.write() as con:
        assert con.execute(last).all() == [(9.0, 6)]
        con.execute(text("UPDATE metrics SET low = -1"))
    assert store.db.all(text("SELECT low, count FROM metrics")) == [(-1, 6)] and store.db.all(select(schema.unsettled)) == []
