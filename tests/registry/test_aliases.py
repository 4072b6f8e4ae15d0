"Aliases moved by many processes at once, on both databases: the history is one chain, and every rollback leaves the version that it names."
from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from sklearn.linear_model import LinearRegression

from mlcycle.entities import AliasMove
from mlcycle.errors import NotFoundError, UsageError
from mlcycle.registry.aliases import promote, rollback, step_back
from mlcycle.registry.versions import register
from mlcycle.store import events, models, runs, schema
from mlcycle.store.check import fsck
from mlcycle.store.connect import Store
from mlcycle.track.begin import start

ACTING = """
import random, sys
from mlcycle.errors import NotFoundError, UsageError
from mlcycle.registry.aliases import promote, rollback
from mlcycle.registry.versions import register
from mlcycle.store import deletion, runs
from mlcycle.store.connect import current_store
store, chance = current_store(), random.Random(int(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(40):
    kind = chance.choice(["register", "promote", "promote", "rollback", "rollback", "rollback", "delete"])
    try:
        if kind == "register":
            print("registered", register("source", "churn", store=store).number, "x")
        elif kind == "promote":
            promote(f"churn/{chance.randrange(1, 4)}", why="better", store=store)
        elif kind == "rollback":
            move = rollback("churn", store=store)
            print("rolled_back", move.before, move.after)
        else:
            deletion.delete(store, runs.resolve(store, chance.choice(["source", "spare"])))
    except NotFoundError:
        assert kind in ("rollback", "delete"), kind
    except UsageError:
        assert kind == "delete", kind
"""


def filled(store: Store) -> None:
    "A finished run with a model of which three versions are registered, and one that can be deleted."
    source = start("source", "churn", store=store, capture=False)
    source.log_model(LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0]))
    source.finish()
    runs.finish(store, runs.create(store, "churn", "spare"))
    for _ in range(3):
        register("source", "churn", store=store)
    promote("churn/1", store=store)


def replayed(moves: list[AliasMove]) -> list[int | None]:
    "Where each rollback of a history had to lead, by the rule of an editor's undo."
    places, expected = [], []
    for move in moves:
        if move.kind == "rolled_back":
            places.pop()
            expected.append(places[-1])
        elif not places or places[-1] != move.after:
            places.append(move.after)
    return expected


def test_processes_that_register_promote_roll_back_and_delete(store: Store) -> None:
    "Five processes: numbers without gaps, one chain of moves, each rollback to where the last promotion came from, no run of a version deleted."
    filled(store)
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": {**os.environ, **store.environment}}
    processes = [subprocess.Popen([sys.executable, "-c", ACTING, str(seed)], **options) for seed in range(5)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 5
    said = [line.split() for text in printed for line in text.splitlines()]
    numbers = sorted(int(number) for what, number, _ in said if what == "registered")
    assert numbers == list(range(4, 4 + len(numbers))) and models.get_model(store, "churn").versions == tuple(range(1, 4 + len(numbers)))
    moves = models.alias_history(store, "churn", "champion")
    assert [move.before for move in moves] == [None, *(move.after for move in moves[:-1])], "each move begins where the last one ended"
    back = [move for move in moves if move.kind == "rolled_back"]
    assert len(back) > 20 and [move.after for move in back] == replayed(moves)
    assert all(move.why == f"rolled back from {move.before}" for move in back)
    assert sorted((str(move.before), str(move.after)) for move in back) == sorted((b, a) for what, b, a in said if what == "rolled_back")
    assert models.get_model(store, "churn").aliases == {"champion": moves[-1].after}
    assert runs.resolve(store, "source").status == "finished" and len(events.listing(store, action="alias.move", limit=9999)) == len(moves)
    assert fsck(store).problems == ()


def test_a_rollback_that_was_shown_is_done_or_refused(store: Store) -> None:
    "Who confirms what a page has shown gets that, or a refusal: never a third version."
    filled(store)
    promote("churn/2", store=store)
    shown = step_back("churn", store=store)[1:]
    promote("churn/3", store=store)
    with pytest.raises(UsageError, match="moved meanwhile: it is at 3 now"):
        rollback("churn", expected=shown, store=store)
    assert models.get_model(store, "churn").aliases == {"champion": 3}
    assert rollback("churn", "worse", expected=(3, 2), store=store).why == "rolled back from 3: worse"


def test_a_bent_history_of_a_former_version_is_read(store: Store) -> None:
    "Up to 0.2.0 a promotion could come between a rollback's look and its move. Such a history still says where the alias is, and ends in an error."
    filled(store)
    for number in (2, 3):
        promote(f"churn/{number}", store=store)
    bent = {"model": "churn", "alias": "champion", "time": 0.0, "actor": "x", "why": "", "kind": "rolled_back"}
    with store.db.write() as con:
        for before, after in ((3, 1), (1, None), (None, None)):
            con.execute(schema.alias_moves.insert().values(before=before, after=after, **bent))
    with pytest.raises(NotFoundError, match="never anywhere before"):
        step_back("churn", store=store)
    promote("churn/2", store=store)
    answer: Any = rollback("churn", store=store)
    assert answer.before == 2 and answer.after is None


def test_what_was_rolled_back_is_named(store: Store) -> None:
    "After 1, 2, back, 2, back the history shows 2 twice: the refusal says that those were undone, not that they never were."
    from mlcycle.store import artifacts

    run = runs.create(store, "e", "source")
    manifest = artifacts.put_bytes(store, run, b"{}", "model/manifest.json", "model")
    for _ in range(2):
        models.create_version(store, "churn", run, manifest.digest, "sklearn")
    promote("churn/1", store=store)
    with pytest.raises(NotFoundError, match=r"^churn@champion was never anywhere before churn/1\."):
        rollback("churn", store=store)
    for _ in range(2):
        promote("churn/2", store=store)
        rollback("churn", store=store)
    with pytest.raises(NotFoundError, match=r"back where it began, at churn/1: what came later \(churn/2\) was rolled back"):
        rollback("churn", store=store)


def test_a_bare_name_is_promoted_to_its_newest_version(store: Store) -> None:
    "Not to the champion that it stands for elsewhere. A promotion to where the alias is adds a reason to the history, and without one nothing."
    filled(store)
    first = promote("churn", store=store)
    assert (first.before, first.after) == (1, 3)
    again = promote("churn", store=store)
    assert again.before == again.after == 3 and len(models.alias_history(store, "churn", "champion")) == 2
    assert len(events.listing(store, action="alias.move")) == 2
    reasoned = promote("churn/3", why="seen on new data", store=store)
    assert reasoned.before == reasoned.after == 3 and models.alias_history(store, "churn", "champion")[-1].why == "seen on new data"
    assert promote("churn@champion", "challenger", store=store).after == 3 and rollback("churn", store=store).after == 1
