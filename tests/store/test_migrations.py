"Opening older, newer and foreign stores: an upgrade happens whole, once, after a copy, or not at all."
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from mlcycle.errors import NotFoundError, StoreError, StoreFormatError, StoreVersionError
from mlcycle.registry.aliases import rollback
from mlcycle.store import facts, models, runs, schema
from mlcycle.store.connect import Store
from mlcycle.store.database import Database
from mlcycle.store.opening import MIGRATIONS, migrate, open_database, stored_version
from mlcycle.track.active import ActiveRun
from tests.conftest import need

TOMORROW = f"{int(schema.HEAD) + 1:04}"
# Copies the table that everything refers to, as most changes do on SQLite, and slowly, so that a second process comes upon it half way.
NEXT = """
import time
import sqlalchemy as sa
from alembic import op

revision, down_revision = "{revision}", "{former}"

def upgrade():
    with op.batch_alter_table("runs", recreate="auto") as table:
        table.add_column(sa.Column("note", sa.Text(), nullable=False, server_default="none yet"))
        table.alter_column("reason", new_column_name="remark")
    time.sleep({seconds})
    {then}
"""


def write_next(folder: Path, seconds: float = 0, then: str = "") -> None:
    "Add the migration of tomorrow to a folder of them."
    (folder / "versions" / "next.py").write_text(NEXT.format(revision=TOMORROW, former=schema.HEAD, seconds=seconds, then=then))


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    "A copy of the migrations with one more, for a store of tomorrow."
    copy = tmp_path / "migrations 100%"
    shutil.copytree(MIGRATIONS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    write_next(copy)
    return copy


@pytest.fixture
def filled(store: Store) -> Store:
    "A store of today with something in every table that refers to another."
    run = ActiveRun(store, runs.create(store, "churn", "baseline"))
    run.log_params({"lr": 0.1})
    run.log_metrics({"auc": -0.0}, step=3)
    run.log_bytes(b"m", "model/model.skops")
    models.create_version(store, "churn", run.run, "d" * 64, "sklearn")
    models.move_alias(store, "churn", "champion", 1)
    facts.put_captures(store, run.run.pk, {"git": {"dirty": False}}, ["a warning"])
    run.finish("failed", reason="because")
    return store


def everything(db: Database) -> dict[str, list]:
    "Every row of every table."
    with db.read() as con:
        tables = sa.MetaData()
        tables.reflect(con)
        return {t.name: sorted(map(repr, con.execute(sa.select(t)).mappings())) for t in tables.sorted_tables if t.name != schema.VERSION_TABLE}


def backups(store: Store) -> list[Path]:
    "The copies beside an SQLite store."
    return sorted(Path(store.db.where).parent.glob("*.backup"))


def undo_0004(con: sa.Connection) -> None:
    "The indexes of version 0003."
    values = "_value" if con.dialect.name == "sqlite" else ""
    for index in (f"params_name_number{values}", "metrics_name_low", "metrics_name_high"):
        con.execute(sa.text(f"DROP INDEX ix_{index}"))
    con.execute(sa.text("CREATE INDEX ix_params_name ON params (name)"))


def empty(url: str) -> Database:
    "An empty database, not yet a store."
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True)
    return Database(url)


def structure(db: Database) -> dict[str, object]:
    "Columns, types, keys, indexes and foreign keys of every table, as the database describes them."
    with db.read() as con:
        look = sa.inspect(con)
        return {name: ([(c["name"], str(c["type"]), c["nullable"]) for c in look.get_columns(name)],
                       look.get_pk_constraint(name)["constrained_columns"],
                       sorted((i["name"], i["column_names"], i["unique"]) for i in look.get_indexes(name)),
                       sorted(str((f["constrained_columns"], f["referred_table"], f["options"])) for f in look.get_foreign_keys(name)),
                       sorted(u["column_names"] for u in look.get_unique_constraints(name)), look.get_table_options(name))
                for name in look.get_table_names()}


def test_migrations_make_the_schema(database_url: str, store: Store, tmp_path: Path) -> None:
    "A database migrated from nothing is the one that a new store gets: Alembic sees no difference, and neither does the database's own description."
    url = need("postgresql").new_database() if database_url.startswith("postgresql") else f"sqlite:///{tmp_path}/migrated/mlcycle.db"
    db = empty(url)
    migrate(db)
    with db.read() as con:
        other = f"ix_params_name_number{'' if db.sqlite else '_value'}"  # each database has its own; what it is, is compared below
        options = {"version_table": schema.VERSION_TABLE, "compare_type": True, "compare_server_default": True,
                   "include_object": lambda _, name, kind, reflected, __: reflected or kind != "index" or name != other}
        assert compare_metadata(MigrationContext.configure(con, opts=options), schema.metadata) == []
    assert stored_version(db) == schema.HEAD and structure(db) == structure(store.db)
    if db.sqlite:
        ddl = sa.text("SELECT name, sql LIKE '%WITHOUT ROWID%' FROM sqlite_master WHERE type = 'table' ORDER BY name")
        assert db.all(ddl) == store.db.all(ddl)
    db.close()


def test_older_store_is_copied_and_upgraded(filled: Store, scripts: Path) -> None:
    "Opening an older store upgrades it, keeps every row, and leaves a copy of the old one that opens as it was."
    before = everything(filled.db)
    filled.close()
    db = open_database(filled.db.url, scripts, TOMORROW)
    after = everything(db)
    assert stored_version(db) == TOMORROW and after.pop("runs")[0].count("'remark': 'because'") == 1
    assert after == {name: rows for name, rows in before.items() if name != "runs"} and len(before["points"]) == 1
    with db.write() as con, pytest.raises(sa.exc.IntegrityError):  # foreign keys still hold
        con.execute(sa.insert(schema.tags).values(run=999, name="x", value="y"))
    db.close()
    if db.sqlite:
        (copy,) = backups(filled)
        old = open_database(f"sqlite:///{copy}")
        assert (stored_version(old), everything(old)) == (schema.HEAD, before)
        old.close()
    open_database(filled.db.url, scripts, TOMORROW).close()
    assert len(backups(filled)) == (1 if db.sqlite else 0)


def test_store_of_0001_is_opened_today(filled: Store, tmp_path: Path) -> None:
    "A store from before live outputs: brought to today's structure when it is opened, every row kept, a copy of it beside it."
    with filled.db.write() as con:
        undo_0004(con)
        for table in (schema.outputs, schema.requests, schema.fingerprints, schema.unsettled, schema.compiled):
            table.drop(con)
        con.execute(sa.text("ALTER TABLE alias_moves DROP COLUMN kind"))
        con.execute(sa.text(f"UPDATE {schema.VERSION_TABLE} SET version_num = '0001'"))
    made = empty(f"sqlite:///{tmp_path}/first/mlcycle.db" if filled.db.sqlite else need("postgresql").new_database())
    migrate(made, head="0001")
    before, shape = everything(filled.db), structure(made)
    assert structure(filled.db) == shape and not {"outputs", "requests", "fingerprints", "unsettled", "compiled"} & set(shape)
    migrate(made)
    filled.close()
    db = open_database(filled.db.url)
    assert stored_version(db) == schema.HEAD and structure(db) == structure(made)
    moves = [row[:-1] + ", 'kind': 'promoted'}" for row in before["alias_moves"]]
    assert everything(db) == {**before, "alias_moves": moves, "outputs": [], "requests": [], "fingerprints": [], "unsettled": [],
                              "compiled": []}
    assert len(backups(filled)) == (1 if db.sqlite else 0)
    db.close()
    made.close()


def test_moves_of_0002_get_their_kind(filled: Store) -> None:
    "Up to 0002 a rollback was known by its reason: what was one then is one now, reasons stay as they were, the next rollback goes where it went."
    for _ in range(3):
        models.create_version(filled, "churn", runs.resolve(filled, "baseline"), "d" * 64, "sklearn")
    moved = [("promoted", 2, "better"), ("promoted", 3, ""), ("rolled_back", 2, "rolled back from 3: complaints"),
             ("promoted", 4, "(rolled back from 3, now mended)"), ("promoted", 3, "was rolled back from 4"), ("removed", None, "not in use"),
             ("rolled_back", 3, "rolled back from nothing"), ("rolled_back", 4, "rolled back from 3")]
    for _, number, why in moved:
        models.move_alias(filled, "churn", "champion", number, why)
    with filled.db.write() as con:
        undo_0004(con)
        schema.unsettled.drop(con)
        schema.compiled.drop(con)
        con.execute(sa.text("ALTER TABLE alias_moves DROP COLUMN kind"))
        con.execute(sa.text(f"UPDATE {schema.VERSION_TABLE} SET version_num = '0002'"))
    before = everything(filled.db)
    filled.close()
    store = Store(open_database(filled.db.url), filled.blobs, filled.settings)
    moves = models.alias_history(store, "churn", "champion")
    assert [(m.kind, m.after, m.why) for m in moves] == [("promoted", 1, ""), *moved]
    assert {name: rows for name, rows in everything(store.db).items() if name not in ("alias_moves", "unsettled", "compiled")} == \
           {name: rows for name, rows in before.items() if name != "alias_moves"}
    assert [rollback("churn", store=store).after for _ in range(2)] == [2, 1]
    with pytest.raises(NotFoundError, match="never anywhere before churn/1"):
        rollback("churn", store=store)
    store.close()


def test_newer_store_is_refused_untouched(filled: Store) -> None:
    "A store from a later mlcycle is refused with the way out, and not a byte of it changes."
    with filled.db.write() as con:
        con.execute(sa.text(f"UPDATE {schema.VERSION_TABLE} SET version_num = '0042'"))
    before = everything(filled.db)
    filled.close()
    path = Path(filled.db.where)
    content = path.read_bytes() if filled.db.sqlite else None
    with pytest.raises(StoreVersionError, match="pip install -U mlcycle"):
        open_database(filled.db.url)
    assert backups(filled) == [] and everything(filled.db) == before and (content is None or path.read_bytes() == content)


def test_two_processes_upgrade_at_once(filled: Store, scripts: Path) -> None:
    "Two processes that open an older store at once both end with the new one, upgraded once and copied once, before the upgrade."
    write_next(scripts, 1.5, "print('upgraded', flush=True)")
    filled.close()
    code = ("import sys\nfrom pathlib import Path\nfrom mlcycle.store.opening import open_database, stored_version\n"
            "print(stored_version(open_database(sys.argv[1], Path(sys.argv[2]), sys.argv[3])))")
    command = [sys.executable, "-c", code, filled.db.url, str(scripts), TOMORROW]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = sorted(process.communicate(timeout=60)[0].split() for process in processes)
    assert printed == [[TOMORROW], ["upgraded", TOMORROW]]
    if filled.db.sqlite:
        (copy,) = backups(filled)
        assert stored_version(Database(f"sqlite:///{copy}")) == schema.HEAD


@pytest.mark.parametrize("failure", ["raise ValueError('no such thing')", "op.execute('SELECT nonsense')", "op.execute('DELETE FROM models')"])
def test_failed_upgrade_changes_nothing(filled: Store, scripts: Path, failure: str) -> None:
    "A migration that raises, that the database refuses, or that breaks a reference leaves the old store, which old mlcycle still opens, and no copy."
    write_next(scripts, 0, failure)
    before, shape = everything(filled.db), structure(filled.db)
    filled.close()
    with pytest.raises(StoreError, match="left as it was"):
        open_database(filled.db.url, scripts, TOMORROW)
    db = open_database(filled.db.url)
    assert (stored_version(db), everything(db), structure(db)) == (schema.HEAD, before, shape) and backups(filled) == []
    db.close()


def test_killed_upgrade_changes_nothing(filled: Store, scripts: Path) -> None:
    "A process killed in the middle of an upgrade leaves the old store; the next one to open it upgrades it."
    write_next(scripts, 0, "import os; os.kill(os.getpid(), 9)")
    before = everything(filled.db)
    filled.close()
    code = ("import sys\nfrom pathlib import Path\nfrom mlcycle.store.opening import open_database\n"
            "open_database(sys.argv[1], Path(sys.argv[2]), sys.argv[3])")
    assert subprocess.run([sys.executable, "-c", code, filled.db.url, str(scripts), TOMORROW]).returncode == -9
    assert (stored_version(filled.db), everything(filled.db)) == (schema.HEAD, before)
    filled.close()
    write_next(scripts)
    db = open_database(filled.db.url, scripts, TOMORROW)
    assert stored_version(db) == TOMORROW
    db.close()


def test_database_of_another_program(tmp_path: Path) -> None:
    "A PostgreSQL database with another program's table of the same name is refused and left alone; one with other tables is shared."
    url = need("postgresql").new_database()
    db = Database(url)
    with db.write() as con:
        con.execute(sa.text("CREATE TABLE customers (name text)"))
        con.execute(sa.text("CREATE TABLE metrics (key text)"))
    with pytest.raises(StoreFormatError, match=r"another program.*metrics"):
        open_database(url)
    with db.write() as con:
        assert sorted(sa.inspect(con).get_table_names()) == ["customers", "metrics"]
        con.execute(sa.text("DROP TABLE metrics"))
    open_database(url).close()
    assert stored_version(db) == schema.HEAD
    db.close()


def test_no_server_is_one_clear_error(tmp_path: Path) -> None:
    "An address where nothing listens is a store error that names it, without its password."
    need("postgresql")
    with pytest.raises(StoreError, match=r"postgresql\+psycopg://me:\*\*\*@127\.0\.0\.1:1/ml") as error:
        open_database("postgresql+psycopg://me:sesame@127.0.0.1:1/ml")
    assert "sesame" not in str(error.value)


def test_new_store_and_history_agree(store: Store) -> None:
    "What the schema calls its newest version is the head of the migrations, and each has one predecessor."
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", os.fspath(MIGRATIONS).replace("%", "%%"))
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD] == [stored_version(store.db)]
    assert all(len(r.revision) == 4 for r in ScriptDirectory.from_config(config).walk_revisions())
