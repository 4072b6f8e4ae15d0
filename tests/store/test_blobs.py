"What every artifact store must do, the same: one suite over a local folder and S3."
from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlcycle.errors import ArtifactError, ArtifactNameError, ConfigError, CorruptArtifactError, NotFoundError
from mlcycle.store import artifacts, runs
from mlcycle.store.blobs import Blobs
from mlcycle.store.copying import PIECE
from mlcycle.store.digests import digest_of
from mlcycle.store.filesystems import open_filesystem
from mlcycle.store.connect import open_store

HELLO = hashlib.sha256(b"hello").hexdigest()


@pytest.fixture(params=["local", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    "An empty store of content of each kind."
    return Blobs(request.getfixturevalue("s3_url") if request.param == "s3" else str(tmp_path / "artifacts"))


def keys(blobs: Blobs) -> list[str]:
    "Every file or object there is, finished or not, as a client without a cache sees it."
    fs, root = open_filesystem(blobs.url)
    fs.invalidate_cache()
    return sorted(path.removeprefix(root).lstrip("/") for path in fs.find(root)) if fs.exists(root) else []


def overwrite(blobs: Blobs, digest: str, data: bytes) -> None:
    "Damage stored content behind the store's back."
    fs, _ = open_filesystem(blobs.url)
    fs.pipe_file(blobs.path(digest), data)


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 9 << 20])
def test_content_comes_back(blobs: Blobs, tmp_path: Path, size: int) -> None:
    "Bytes and files of every size that matters come back as they were, under their SHA-256, from memory and from disk."
    data = os.urandom(size)
    (tmp_path / "source").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    assert not blobs.exists(digest)
    assert blobs.put(tmp_path / "source") == blobs.put(data) == (digest, size)
    assert blobs.exists(digest) and blobs.size(digest) == size and blobs.read(digest) == data
    assert blobs.fetch(digest, tmp_path / "new" / "folder" / "copy").read_bytes() == data == (tmp_path / "source").read_bytes()
    assert keys(blobs) == [f"sha256/{digest[:2]}/{digest[2:]}"] and list(blobs.digests()) == [(digest, size)]


def test_same_content_at_once(blobs: Blobs, tmp_path: Path) -> None:
    "Threads and processes that store the same content at once store it once, and nobody reads a part of it."
    data = os.urandom(5 << 20)
    (tmp_path / "source").write_bytes(data)
    code = ("import sys\nfrom pathlib import Path\nfrom mlcycle.store.blobs import Blobs\n"
            "for _ in range(3): print(Blobs(sys.argv[1]).put(Path(sys.argv[2]))[0])")
    command = [sys.executable, "-c", code, blobs.url, str(tmp_path / "source")]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]

    def put_and_read(i: int) -> bool:
        return blobs.read(blobs.put(data if i % 2 else tmp_path / "source")[0]) == data

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(put_and_read, range(12)))
    digest = digest_of(data)
    assert {line for other in others for line in other.communicate(timeout=60)[0].split()} == {digest}
    assert keys(blobs) == [f"sha256/{digest[:2]}/{digest[2:]}"]


@pytest.mark.parametrize("damage", [b"", b"hellO", b"hello, longer"], ids=["emptied", "flipped", "longer"])
def test_damage_is_found(blobs: Blobs, tmp_path: Path, damage: bytes) -> None:
    "Content that was changed behind our back is never handed out: not in memory, not in a file."
    blobs.put(b"hello")
    overwrite(blobs, HELLO, damage)
    with pytest.raises(CorruptArtifactError, match="mlcycle fsck"):
        blobs.read(HELLO)
    (tmp_path / "copy").write_bytes(b"what was there")
    with pytest.raises(CorruptArtifactError):
        blobs.fetch(HELLO, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"what was there" and not list(tmp_path.glob(".copy*"))


@pytest.mark.parametrize("damage", [b"", b"hell", b"hello, longer"], ids=["emptied", "truncated", "longer"])
def test_content_that_lost_its_end_is_stored_again(blobs: Blobs, tmp_path: Path, damage: bytes) -> None:
    "What is acknowledged is there: content whose length is wrong is replaced when somebody stores it again, from memory and from a file."
    (tmp_path / "source").write_bytes(b"hello")
    blobs.put(b"hello")
    for source in (b"hello", tmp_path / "source"):
        overwrite(blobs, HELLO, damage)
        assert not blobs.holds(HELLO, 5)
        assert blobs.put(source) == (HELLO, 5) and blobs.read(HELLO) == b"hello"
    assert len(keys(blobs)) == 1


def test_content_that_is_stored_again_is_young_again(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    "`gc` goes by the age of content: who stores what has been there for long must not lose it a moment later."
    blobs.put(b"hello")
    first = blobs.changed(HELLO)
    monkeypatch.setattr("mlcycle.store.blobs.RENEW_SECONDS", -1.0)
    while blobs.changed(HELLO) == first:  # an object store counts whole seconds
        blobs.put(b"hello")
    assert blobs.changed(HELLO) > first and blobs.changed("0" * 64) == 0.0 and blobs.read(HELLO) == b"hello"


def test_missing_content_says_so(blobs: Blobs, tmp_path: Path) -> None:
    "What is not there is an error that names the store, whichever way it is asked for."
    for ask in (lambda: blobs.read(HELLO), lambda: blobs.size(HELLO), lambda: blobs.fetch(HELLO, tmp_path / "copy")):
        with pytest.raises(NotFoundError, match="artifact store at"):
            ask()
    assert list(blobs.digests()) == [] == blobs.abandoned(0)
    with pytest.raises(ArtifactError, match=r"nothing\.bin"):
        blobs.put(tmp_path / "nothing.bin")


def test_refused_content_leaves_nothing(blobs: Blobs, tmp_path: Path) -> None:
    "A watcher that refuses the content half way leaves nothing, neither under a digest nor under a temporary name."
    (tmp_path / "source").write_bytes(bytes(12 << 20))
    seen = []

    def watch(piece: bytes) -> None:
        seen.append(len(piece))
        if sum(seen) > 9 << 20:
            raise PermissionError("enough")

    for source in (tmp_path / "source", bytes(12 << 20)):
        seen.clear()
        with pytest.raises((PermissionError, ArtifactError)):
            blobs.put(source, watch)
    assert keys(blobs) == [] and max(seen[:1]) > 0


def test_abandoned_and_deleted(blobs: Blobs) -> None:
    "What a killed writer left is found once it is old enough, and removed; deleting content takes nothing else along."
    blobs.put(b"hello")
    blobs.put(b"other")
    fs, root = open_filesystem(blobs.url)
    fs.makedirs(f"{root}/tmp", exist_ok=True)
    fs.pipe_file(f"{root}/tmp/half", b"half")
    assert blobs.abandoned(3600) == []
    ((path, size),) = blobs.abandoned(0)
    assert size == 4 and path.endswith("tmp/half")
    blobs.delete_temporary(path)
    blobs.delete_temporary(path)
    blobs.delete(HELLO)
    blobs.delete(HELLO)
    assert not blobs.exists(HELLO) and blobs.abandoned(0) == [] and [size for _, size in blobs.digests()] == [5]
    assert blobs.put(b"hello") == (HELLO, 5) and blobs.read(HELLO) == b"hello"


_STREAM = """
import hashlib, os, sys
from pathlib import Path
from mlcycle.store.blobs import Blobs
def peak():
    return int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]) / 1024
blobs = Blobs(sys.argv[1])
blobs.read(blobs.put(b'warm')[0])
before = peak()
digest, size = blobs.put(Path(sys.argv[2]))
written = peak()
blobs.fetch(digest, Path(sys.argv[3]))
print(digest, written - before, peak() - before)
"""


def test_large_file_needs_little_memory(blobs: Blobs, tmp_path: Path) -> None:
    "200 MB go in and come out in a process whose memory grows by a small part of that."
    source, digest = tmp_path / "large", hashlib.sha256()
    with source.open("wb") as f:
        for i in range(200):
            piece = hashlib.sha256(bytes([i])).digest() * (1 << 15)
            digest.update(piece)
            f.write(piece)
    found, written, fetched = subprocess.run([sys.executable, "-c", _STREAM, blobs.url, str(source), str(tmp_path / "copy")], check=True,
                                             capture_output=True, text=True).stdout.split()
    assert found == digest.hexdigest() == digest_of(tmp_path / "copy")
    assert float(written) < 80 and float(fetched) < 80, f"memory grew by {written} and {fetched} MB"


def test_forked_child_reads(blobs: Blobs) -> None:
    "A forked child reads and writes content through a client of its own."
    blobs.put(b"hello")
    if (child := os.fork()) == 0:
        try:
            ok = blobs.read(HELLO) == b"hello" and blobs.put(b"from the child")[1] == 14
        except BaseException:
            ok = False
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert blobs.read(digest_of(b"from the child")) == b"from the child"


def test_unknown_places(tmp_path: Path) -> None:
    "An address that nothing can open is an error of the settings, in words."
    with pytest.raises(ConfigError, match="Use a folder or an fsspec URL"):
        Blobs("nonsense://bucket").put(b"x")


@pytest.mark.parametrize("size", [1, 20 << 20])
def test_no_such_bucket(s3_url: str, size: int) -> None:
    "A bucket that does not exist is one clear error, and a misspelled one is not made by itself."
    for _ in range(2):
        with pytest.raises(ArtifactError, match=r"s3://no-such-bucket/a.*Make the bucket"):
            Blobs("s3://no-such-bucket/a").put(bytes(size))


# Names


wild = st.text(min_size=1, max_size=40) | st.lists(
    st.sampled_from(["a", "B", "..", ".", "", "~", "con", "NUL.txt", "aux ", "com¹", "a.", " a", "ä", "a\u0308", "\u202e", "\0", "a\\b", "C:", "*",
                     "/", "é/è", "-rf", "%2e%2e"]),
    min_size=1, max_size=4).map("/".join)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=wild)
@example("../escape")
@example("/etc/passwd")
@example("a/../../b")
@example("C:\\Windows\\a")
@example("con.txt")
@example("x" * 300)
@example("a/" * 600 + "a")
@example("\ud800")
@example(".hidden")
@example("ﬀ/ﬁ")
def test_any_name_is_refused_or_one_file(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, name: str) -> None:
    "Whatever a person calls an artifact, it is refused in words, or its download is exactly one file below the folder, of that name."
    folder: dict[str, Any] = _shared(tmp_path)
    store, run = folder["store"], runs.create(folder["store"], "e")
    dest = tmp_path_factory.mktemp("dest") / "inside"
    try:
        stored = artifacts.put_bytes(store, run, b"content", name)
    except ArtifactNameError as e:
        assert "artifact's name" in str(e) and artifacts.listing(store, run) == []
        return
    (written,) = artifacts.download(store, run, dest)
    below = [path for path in dest.parent.rglob("*") if not path.is_dir()]
    assert below == [written] and written.read_bytes() == b"content" and written.resolve().is_relative_to(dest.resolve())
    assert written.relative_to(dest.resolve()).as_posix() == stored.name == unicodedata.normalize("NFC", name)


_stores: dict[Path, dict[str, Any]] = {}


def _shared(folder: Path) -> dict[str, Any]:
    "One store for all the examples of a test."
    if folder not in _stores:
        _stores[folder] = {"store": open_store(folder / "names" / "mlcycle.db")}
    return _stores[folder]


def test_link_in_the_folder_leads_nowhere(tmp_path: Path) -> None:
    "A link inside the folder that a download goes to cannot carry it out of there."
    with open_store(tmp_path / "s" / "mlcycle.db") as store:
        run = runs.create(store, "e")
        artifacts.put_bytes(store, run, b"content", "plots/roc.png")
        (tmp_path / "outside").mkdir()
        (tmp_path / "dest").mkdir()
        (tmp_path / "dest" / "plots").symlink_to(tmp_path / "outside")
        with pytest.raises(ArtifactNameError, match="leads out"):
            artifacts.download(store, run, tmp_path / "dest")
        (tmp_path / "dest" / "plots").unlink()
        (tmp_path / "dest" / "plots").mkdir()
        (tmp_path / "dest" / "plots" / "roc.png").symlink_to(tmp_path / "outside" / "victim")
        artifacts.download(store, run, tmp_path / "dest")
    assert list((tmp_path / "outside").iterdir()) == [] and (tmp_path / "dest" / "plots" / "roc.png").read_bytes() == b"content"
