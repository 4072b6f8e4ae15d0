"Capture in repositories as people have them: broken, busy, foreign, enormous."
from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlcycle.track.capture import git, repository, snapshots
from mlcycle.track.capture.providers import CaptureContext, Captured, capture_all

Git = Callable[..., str]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    "No memory of earlier repositories, and no settings of the machine's own user."
    for cache in (repository._repositories, snapshots._last, git._remotes, git._too_slow):
        cache.clear()
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("HOME", str(tmp_path))


def call(folder: Path, *args: str, ok: bool = True, env: dict[str, str] | None = None) -> str:
    "Plain git, as the user would call it."
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "protocol.file.allow=always"]
    done = subprocess.run(["git", *identity, *args], cwd=folder, capture_output=True, env=os.environ | (env or {}))
    assert not ok or done.returncode == 0, done.stderr.decode()
    return done.stdout.decode("utf-8", "surrogateescape")


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    "A repository with one commit of three files."
    top = tmp_path / "repo"
    top.mkdir()
    call(top, "init", "-q", "-b", "main")
    (top / "src").mkdir()
    for name in ("train.py", "src/features.py", "notes.txt"):
        (top / name).write_text(f"# {name}\n")
    call(top, "add", ".")
    call(top, "commit", "-qm", "First")
    return top


def capture(folder: Path, **changes: object) -> Captured | None:
    "The git provider, asked from a folder."
    return git.capture(CaptureContext(**{"run_id": "0" * 16, "kind": "script", "root": folder, "cwd": folder} | changes))


def footprint(top: Path) -> dict[str, object]:
    "Everything of a repository that capture must not touch: index, HEAD, reflogs, settings, hooks, branches, work tree, status."
    folder = Path(call(top, "rev-parse", "--absolute-git-dir").strip())
    found: dict[str, object] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if not name.startswith(("objects/", "refs/mlcycle/")):
            changed = 0 if name.startswith("sharedindex.") else path.stat().st_mtime_ns  # Git marks that one when it reads it
            found[name] = (hashlib.sha256(path.read_bytes()).hexdigest(), changed)
    for path in sorted(p for p in top.rglob("*") if ".git" not in p.relative_to(top).parts):
        info = path.lstat()
        found[os.fsdecode(path)] = (info.st_mode, info.st_size, info.st_mtime_ns, info.st_ino)
    found["status"] = call(top, "--no-optional-locks", "status", "--porcelain", "-z")
    return found


def files(top: Path, commit: str) -> dict[str, tuple[str, str]]:
    "Mode and content (of a submodule: its commit) of every path in a commit."
    entries = [e.split("\t", 1) for e in call(top, "ls-tree", "-r", "-z", commit).split("\0") if e]
    found = {}
    for about, path in entries:
        mode, kind, digest = about.split()
        found[path] = (mode, call(top, "cat-file", "blob", digest) if kind == "blob" else digest)
    return found


def test_dirty_tree_comes_back_and_nothing_is_touched(repo: Path, tmp_path: Path) -> None:
    "The promise itself: every kind of change, names of every kind, restored; index, HEAD, reflog and work tree byte for byte the same."
    (repo / "train.py").write_text("changed\n")
    (repo / "src" / "features.py").unlink()
    (repo / "staged.py").write_text("staged\n")
    call(repo, "add", "staged.py")
    (repo / "staged.py").write_text("staged, then edited\n")
    call(repo, "rm", "-q", "--cached", "notes.txt")
    (repo / "tool.sh").write_text("#!/bin/sh\n")
    (repo / "tool.sh").chmod(0o755)
    (repo / "link").symlink_to("train.py")
    (repo / "dangling").symlink_to("/nowhere/at all")
    (repo / ".gitignore").write_text("*.log\n")
    (repo / "ignored.log").write_text("no\n")
    for name in ("with space.py", "two\nlines.py", "tab\there.py", 'quo"te.py', "-dash.py", ":(top)magic.py", "données.py", "深い/層.py"):
        (repo / name).parent.mkdir(exist_ok=True)
        (repo / name).write_text(name)
    raw = os.fsencode(repo) + b"/latin-\xe9.py"
    with open(raw, "wb") as f:
        f.write(b"latin")
    before = footprint(repo)
    captured = capture(repo)
    assert footprint(repo) == before
    assert captured.warnings == () and captured.data["dirty"]
    assert any(r"latin-\xe9.py" in c for c in captured.data["changed"])

    again = tmp_path / "again"
    call(repo, "worktree", "add", "-q", "--detach", str(again), captured.data["snapshot"])
    found = {p.relative_to(again) for p in again.rglob("*") if not p.is_dir()} - {Path(".git")}
    expected = {p.relative_to(repo) for p in repo.rglob("*") if not p.is_dir() and ".git" not in p.relative_to(repo).parts}
    assert found == expected - {Path("ignored.log")}
    for name in found:
        here, there = repo / name, again / name
        assert here.is_symlink() == there.is_symlink()
        assert (os.readlink(here) == os.readlink(there)) if here.is_symlink() else (here.read_bytes() == there.read_bytes())
        assert here.is_symlink() or here.stat().st_mode & stat.S_IXUSR == there.stat().st_mode & stat.S_IXUSR


def test_snapshot_survives_gc_and_amend(repo: Path) -> None:
    "Without its ref `git gc` would delete it; the parent must survive an amended history too."
    (repo / "train.py").write_text("changed\n")
    data = capture(repo).data
    call(repo, "commit", "-qam", "Other", "--amend")
    call(repo, "reflog", "expire", "--expire=now", "--all")
    call(repo, "gc", "-q", "--prune=now")
    assert files(repo, data["snapshot"])["train.py"][1] == "changed\n"
    assert call(repo, "cat-file", "-t", data["commit"]) == "commit\n"
    assert data["ref"] in call(repo, "for-each-ref", "--format=%(refname)")


def test_clean_commit_is_held_too(repo: Path) -> None:
    "A run on a clean commit that is amended afterwards must still be repeatable."
    data = capture(repo).data
    assert not data["dirty"] and data["snapshot"] == data["commit"]
    (repo / "train.py").write_text("2\n")
    call(repo, "commit", "-qam", "Other", "--amend")
    call(repo, "reflog", "expire", "--expire=now", "--all")
    call(repo, "gc", "-q", "--prune=now")
    assert files(repo, data["snapshot"])["train.py"][1] == "# train.py\n"


def test_same_state_is_one_commit_and_a_changed_one_another(repo: Path) -> None:
    "A thousand runs of one state must not fill the repository; an edit of equal size must not be missed."
    past = time.time() - 60
    (repo / "train.py").write_text("lr = 1\n")
    os.utime(repo / "train.py", (past, past))
    one = capture(repo).data["snapshot"]
    assert capture(repo, run_id="1" * 16).data["snapshot"] == one
    snapshots._last.clear()
    assert capture(repo).data["snapshot"] == one, "another process must make the same commit"
    assert len(call(repo, "for-each-ref", "refs/mlcycle").splitlines()) == 1
    assert snapshots._last, "an old file's state is remembered, or each run would make its snapshot anew"
    (repo / "train.py").write_text("lr = 2\n")
    os.utime(repo / "train.py", (past, past))
    assert files(repo, capture(repo).data["snapshot"])["train.py"][1] == "lr = 2\n"


def test_quick_edits_of_equal_size_are_seen(repo: Path) -> None:
    "Edits faster than the file system's clock: each snapshot must hold the content of its moment."
    for number in range(1000, 1012):
        (repo / "train.py").write_text(f"{number}\n")
        assert not snapshots._last, "a state so fresh must not be remembered: file systems exist whose clock ticks every two seconds"
        assert files(repo, capture(repo).data["snapshot"])["train.py"][1] == f"{number}\n"


def test_racily_clean_entry_is_not_missed(repo: Path) -> None:
    "An edit in the very tick in which the index was written: Git compares the index's own time, which the copy must keep."
    (repo / "train.py").write_text("aaaa\n")
    call(repo, "add", "train.py")
    info = (repo / "train.py").stat()
    (repo / "train.py").write_text("bbbb\n")
    os.utime(repo / "train.py", ns=(info.st_atime_ns, info.st_mtime_ns))
    call(repo, "config", "core.trustctime", "false")
    os.utime(repo / ".git" / "index", ns=(info.st_atime_ns, info.st_mtime_ns))
    assert files(repo, capture(repo).data["snapshot"])["train.py"][1] == "bbbb\n"


def test_removed_snapshot_is_made_again(repo: Path) -> None:
    "Somebody tidied up refs/mlcycle and pruned: the next run in the same process must not point to a commit that is gone."
    (repo / "train.py").write_text("changed\n")
    os.utime(repo / "train.py", (1, 1))
    data = capture(repo).data
    call(repo, "update-ref", "-d", data["ref"])
    call(repo, "gc", "-q", "--prune=now")
    again = [capture(repo), capture(repo)]
    assert again[1].warnings == ()
    assert files(repo, again[1].data["snapshot"])["train.py"][1] == "changed\n"


def test_files_left_out_are_named(repo: Path) -> None:
    "Big data, secrets and too many files stay out of the repository, and the run says so."
    with open(repo / "data.parquet", "wb") as f:
        f.truncate(10 * 2**20 + 1)
    (repo / ".env").write_text("TOKEN=x\n")
    (repo / "new.py").write_text("new\n")
    captured = capture(repo)
    assert "new.py" in files(repo, captured.data["snapshot"])
    assert not {"data.parquet", ".env"} & set(files(repo, captured.data["snapshot"]))
    assert any("data.parquet" in w and "10 MiB" in w for w in captured.warnings)
    assert any(".env" in w and "secret" in w for w in captured.warnings)


def test_big_file_that_git_tracks_is_kept(repo: Path) -> None:
    "What Git already tracks is the project's, whatever its size."
    (repo / "notes.txt").write_bytes(b"x" * (11 * 2**20))
    captured = capture(repo)
    assert captured.warnings == ()
    assert call(repo, "cat-file", "-s", f"{captured.data['snapshot']}:notes.txt").strip() == str(11 * 2**20)


def test_huge_number_of_untracked_files(repo: Path) -> None:
    "A forgotten folder of 5,000 files must not slow each run down or fill the repository, and code (small) goes before data."
    (repo / "cache").mkdir()
    for i in range(5000):
        (repo / "cache" / f"{i}.json").write_text("x" * 40)
    (repo / "new.py").write_text("new\n")
    captured = capture(repo)
    kept = call(repo, "ls-tree", "-r", "--name-only", captured.data["snapshot"])
    assert "new.py" in kept and kept.count("cache/") == 1999
    assert captured.data["changes"] == 5001 and len(captured.data["changed"]) == 50
    assert len(captured.warnings) == 1 and "and 2998 more" in captured.warnings[0]


def test_folder_of_the_store_is_left_out(repo: Path) -> None:
    "The store changes with every run; in a snapshot it would make each run's state another one."
    (repo / "sub" / ".mlcycle").mkdir(parents=True)
    (repo / "sub" / ".mlcycle" / "mlcycle.db").write_text("x")
    (repo / ".mlcycle").mkdir()
    (repo / ".mlcycle" / "mlcycle.db").write_text("x")
    data = capture(repo).data
    assert not data["dirty"] and data["snapshot"] == data["commit"]


def test_no_hook_filter_prompt_or_signature(repo: Path, tmp_path: Path) -> None:
    "Hooks could do anything, signing could ask for a passphrase; neither may start, and no identity is needed."
    hook = "#!/bin/sh\ntouch %s\n" % (tmp_path / "hook-ran")
    for name in ("post-index-change", "reference-transaction", "pre-commit", "post-commit", "commit-msg", "post-checkout"):
        (repo / ".git" / "hooks" / name).write_text(hook)
        (repo / ".git" / "hooks" / name).chmod(0o755)
    signer = tmp_path / "gpg"
    signer.write_text("#!/bin/sh\ntouch %s\nsleep 60\n" % (tmp_path / "gpg-ran"))
    signer.chmod(0o755)
    for key, value in (("commit.gpgsign", "true"), ("gpg.program", str(signer)), ("user.useConfigOnly", "true")):
        call(repo, "config", key, value)
    for path in tmp_path.glob("*-ran"):
        path.unlink()
    (repo / "train.py").write_text("changed\n")
    captured = capture(repo)
    assert captured.warnings == () and captured.data["snapshot"] != captured.data["commit"]
    assert not list(tmp_path.glob("*-ran"))


def test_hanging_filter_is_killed_and_not_tried_again(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "A clean filter that hangs (a network mount, say) costs the timeout once, not once a run, and leaves no process behind."
    (repo / ".gitattributes").write_text("*.bin filter=slow\n")
    call(repo, "config", "filter.slow.clean", f"printf x >> .git/started; sleep 300.{os.getpid()}")
    (repo / "weights.bin").write_bytes(b"1")
    os.utime(repo / "weights.bin", (1, 1))
    os.utime(repo / ".gitattributes", (1, 1))
    monkeypatch.setattr(repository.run_git, "__kwdefaults__", {**repository.run_git.__kwdefaults__, "timeout": 1.0})
    first = capture(repo)
    assert "took longer than 1 s" in first.warnings[0] and first.data["commit"]
    assert "took longer" in capture(repo).warnings[0]
    assert (repo / ".git" / "started").read_text() == "x", "the filter was started again"
    commands = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists()]
    assert not [c for c in commands if f"300.{os.getpid()}".encode() in c]


def test_failing_filter_is_a_warning(repo: Path) -> None:
    "Git LFS configured but not installed: the facts are still recorded."
    (repo / ".gitattributes").write_text("*.bin filter=lfs\n")
    call(repo, "config", "filter.lfs.clean", "no-such-program-xyz clean %f")
    call(repo, "config", "filter.lfs.required", "true")
    (repo / "weights.bin").write_bytes(b"1")
    captured = capture(repo)
    assert captured.data["commit"] and "snapshot" not in captured.data
    assert captured.warnings[0].startswith("no snapshot of uncommitted work: ")


def test_inside_a_git_hook(repo: Path, tmp_path: Path) -> None:
    "A training script started by a pre-commit hook inherits variables that name another repository or a half-made index."
    other = tmp_path / "other"
    other.mkdir()
    call(other, "init", "-q")
    (repo / "train.py").write_text("changed\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_DIR", str(other / ".git"))
        patch.setenv("GIT_WORK_TREE", str(other))
        patch.setenv("GIT_INDEX_FILE", str(other / ".git" / "next-index"))
        data = capture(repo).data
    assert data["branch"] == "main" and files(repo, data["snapshot"])["train.py"][1] == "changed\n"
    assert call(other, "for-each-ref") == ""


def test_index_locked_by_another_process(repo: Path) -> None:
    "Another git at work (or one that died and left its lock): capture neither waits nor removes the lock."
    (repo / ".git" / "index.lock").write_text("")
    (repo / "train.py").write_text("changed\n")
    captured = capture(repo)
    assert captured.warnings == () and files(repo, captured.data["snapshot"])["train.py"][1] == "changed\n"
    assert (repo / ".git" / "index.lock").exists()


def test_no_commit_yet(tmp_path: Path) -> None:
    "A repository before its first commit: no HEAD, perhaps no index."
    call(tmp_path, "init", "-q", "-b", "main", "fresh")
    fresh = tmp_path / "fresh"
    empty = capture(fresh)
    assert (empty.data["commit"], empty.data["branch"], empty.data["dirty"]) == (None, "main", False) and "snapshot" not in empty.data
    (fresh / "train.py").write_text("first\n")
    captured = capture(fresh)
    assert captured.warnings == () and files(fresh, captured.data["snapshot"]) == {"train.py": ("100644", "first\n")}
    assert not (fresh / ".git" / "index").exists()


def test_only_deletions(repo: Path) -> None:
    "No changed file has a time to date the snapshot with."
    for name in ("train.py", "notes.txt", "src/features.py"):
        (repo / name).unlink()
    captured = capture(repo)
    assert captured.warnings == () and files(repo, captured.data["snapshot"]) == {}


def test_merge_conflict(repo: Path) -> None:
    "An index with unmerged entries cannot be written as a tree; the work tree's files, conflict marks included, are what ran."
    for branch, text in (("theirs", "theirs\n"), ("main", "ours\n")):
        call(repo, "checkout", "-q", *(["-b"] if branch == "theirs" else []), branch)
        (repo / "train.py").write_text(text)
        call(repo, "rm", "-q", "notes.txt") if branch == "theirs" else (repo / "notes.txt").write_text("ours\n")
        call(repo, "commit", "-qam", branch)
    call(repo, "merge", "theirs", ok=False)
    before = footprint(repo)
    captured = capture(repo)
    assert footprint(repo) == before and captured.warnings == ()
    found = files(repo, captured.data["snapshot"])
    assert "<<<<<<<" in found["train.py"][1] and found["notes.txt"][1] == "ours\n"


def test_files_that_change_their_kind(repo: Path) -> None:
    "A file becomes a folder, a folder becomes a symlink or a file, a file becomes a symlink."
    (repo / "train.py").unlink()
    (repo / "train.py").mkdir()
    (repo / "train.py" / "__init__.py").write_text("package\n")
    shutil.rmtree(repo / "src")
    (repo / "src").symlink_to("train.py")
    (repo / "notes.txt").unlink()
    (repo / "notes.txt").symlink_to("elsewhere")
    captured = capture(repo)
    assert captured.warnings == ()
    assert files(repo, captured.data["snapshot"]) == {
        "train.py/__init__.py": ("100644", "package\n"), "src": ("120000", "train.py"), "notes.txt": ("120000", "elsewhere"),
    }


def test_submodule_and_nested_repository(repo: Path, tmp_path: Path) -> None:
    "A submodule is recorded by its commit; uncommitted work in it, and a repository that only lies there, are named as missing."
    library = tmp_path / "library"
    shutil.copytree(repo, library)
    call(repo, "submodule", "--quiet", "add", str(library), "library")
    call(repo, "commit", "-qm", "Submodule")
    (repo / "library" / "train.py").write_text("changed\n")
    shutil.copytree(library, repo / "nested")
    captured = capture(repo)
    assert len(captured.warnings) == 2
    assert any("library: has uncommitted changes" in w for w in captured.warnings)
    assert any("nested/: is a repository of its own" in w for w in captured.warnings)
    call(repo / "library", "commit", "-qam", "In the submodule")
    for text in ("more\n", "even more\n"):  # The submodule's commit shows nowhere in the outer status: it must not be remembered
        head = call(repo / "library", "rev-parse", "HEAD").strip()
        assert files(repo, capture(repo).data["snapshot"])["library"] == ("160000", head)
        (repo / "library" / "train.py").write_text(text)
        call(repo / "library", "commit", "-qam", text)


def test_added_work_tree(repo: Path, tmp_path: Path) -> None:
    "`git worktree add`: its own HEAD and index, shared refs; the main work tree stays as it is."
    call(repo, "worktree", "add", "-q", "-b", "side", str(tmp_path / "side"))
    (tmp_path / "side" / "train.py").write_text("side\n")
    before = footprint(repo)
    captured = capture(tmp_path / "side" / "src")
    assert footprint(repo) == before
    assert (captured.data["branch"], captured.data["folder"]) == ("side", "src")
    assert files(repo, captured.data["snapshot"])["train.py"][1] == "side\n"
    assert call(repo, "rev-parse", captured.data["ref"]).strip() == captured.data["snapshot"]


def test_detached_head_in_a_subfolder_of_a_project(repo: Path) -> None:
    "The usual state in CI, and a working directory below the root."
    call(repo, "checkout", "-q", "--detach")
    captured = capture(repo, cwd=repo / "src")
    assert captured.data["branch"] is None and captured.data["folder"] == "src"


def test_no_work_tree(repo: Path, tmp_path: Path) -> None:
    "A bare repository, the inside of `.git` and a plain folder have no state to record, and that is no problem."
    call(tmp_path, "clone", "-q", "--bare", str(repo), "bare.git")
    for folder in (tmp_path / "bare.git", repo / ".git", tmp_path):
        assert capture(folder) is None


def test_git_is_not_installed(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "In a slim image: a warning where there is a repository, silence where there is none."
    monkeypatch.setenv("PATH", str(tmp_path))
    assert capture(tmp_path) is None
    assert capture(repo).warnings == ("nothing was recorded: git is not installed, or the folder is gone",)


def test_repository_of_another_owner(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "safe.directory: Git refuses repositories that belong to somebody else, as in a container with a mounted project."
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    captured = capture(repo)
    assert captured.data == {} and "dubious ownership" in captured.warnings[0]


@pytest.mark.parametrize("damage", ["HEAD", "index", "config"])
def test_damaged_repository(repo: Path, damage: str) -> None:
    "A broken repository is a warning with Git's own words, not an exception."
    (repo / "train.py").write_text("changed\n")
    (repo / ".git" / damage).write_bytes(b"\0garbage\n[[[")
    found, warnings = capture_all(CaptureContext("0" * 16, "script", repo, repo))
    assert "code" in found
    assert [w for w in warnings if w.startswith("git: ")] or "git" not in found


def test_repository_that_cannot_be_written(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Objects cannot be written (read-only mount, full disk): facts without a snapshot."
    (repo / "train.py").write_text("changed\n")
    shutil.move(repo / ".git" / "objects", repo / ".git" / "real")
    (repo / ".git" / "objects").mkdir()
    (repo / ".git" / "objects" / "info").mkdir()
    (repo / ".git" / "objects" / "info" / "alternates").write_text(str(repo / ".git" / "real") + "\n")
    for i in range(256):
        (repo / ".git" / "objects" / f"{i:02x}").write_text("in the way")
    captured = capture(repo)
    assert captured.data["commit"] and captured.data["dirty"] and "snapshot" not in captured.data
    assert captured.warnings[0].startswith("no snapshot of uncommitted work: ")


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://ada:t0ken@example.org/churn.git", "https://example.org/churn.git"),
        ("https://x-access-token:ghs_abc@example.org:8443/churn.git?private_token=1#x", "https://example.org:8443/churn.git"),
        ("https://t0ken@example.org/a@b.git", "https://example.org/a@b.git"),
        ("ssh://git:pw@example.org/churn.git", "ssh://git@example.org/churn.git"),
        ("git@example.org:team/churn.git", "git@example.org:team/churn.git"),
        ("/srv/git/churn.git", "/srv/git/churn.git"),
    ],
)
def test_remote_without_credentials(repo: Path, url: str, kept: str) -> None:
    "A token in the remote's address must not reach the store; origin goes before others, and a change is noticed."
    call(repo, "remote", "add", "backup", "https://example.org/backup.git")
    assert capture(repo).data["remote"] == "https://example.org/backup.git"
    call(repo, "remote", "add", "origin", url)
    os.utime(repo / ".git" / "config", (1, 1))
    assert capture(repo).data["remote"] == kept


def test_sparse_checkout_and_split_index(repo: Path) -> None:
    "Index formats that are not the plain one."
    call(repo, "sparse-checkout", "set", "--cone", "src")
    call(repo, "update-index", "--split-index")
    call(repo, "config", "core.splitIndex", "true")
    (repo / "src" / "features.py").write_text("changed\n")
    before = footprint(repo)
    captured = capture(repo)
    assert footprint(repo) == before and captured.warnings == ()
    found = files(repo, captured.data["snapshot"])
    assert found["src/features.py"][1] == "changed\n" and "train.py" in found


def test_many_threads_at_once(repo: Path) -> None:
    "Parallel trials start at the same moment."
    from concurrent.futures import ThreadPoolExecutor

    (repo / "train.py").write_text("changed\n")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: capture(repo, run_id=f"{i:016x}"), range(16)))
    assert {c.data["snapshot"] for c in found} == {found[0].data["snapshot"]}
    assert not [c for c in found if c.warnings]
