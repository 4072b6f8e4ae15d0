"""How the archives beside this file were made: by this script, with mlcycle as it was, where no real person, machine or path is named.

    git worktree add FORMER COMMIT && uv venv VENV && uv pip install -p VENV setuptools -e FORMER
    unshare --map-root-user --mount --uts sh tests/store/former/make.sh FORMER VENV

The tables of version 0002 are those of commit d20a096, 0003 of 354d6e6, 0004 of 03aaf09, 0005 of 1ba490e. It is kept to say what is in the stores,
and is not run by any test. A later version gets an archive of its own.
"""
from __future__ import annotations

import sqlite3
import subprocess
import tarfile
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

import mlcycle as mlc
from mlcycle.store import models, opening
from mlcycle.store.connect import current_store

HERE = Path.cwd()  # The project: /home/anna/churn
ROWS = pd.DataFrame({"age": [21.0, 34.0, 45.0, 52.0, 63.0, 70.0], "calls": [1, 5, 2, 8, 3, 9]})
LEFT = np.array([0, 0, 0, 1, 1, 1])

NOTEBOOK = [
    ("parameters", "C: float = 1.0  # Inverse regularisation strength\nseed: int = 0"),
    ("fit", "import pandas as pd\nfrom sklearn.linear_model import LogisticRegression\n\nimport mlcycle as mlc\n\n"
            "rows = pd.read_csv('customers.csv')\nX, y = rows[['age', 'calls']], rows['left']\nmodel = LogisticRegression(C=C).fit(X, y)\n"
            "print(f'C = {C}, seed = {seed}')"),
    ("log", "mlc.log_metric('accuracy', model.score(X, y))\n"
            "mlc.log_input(rows, 'customers', source='customers.csv')\nmlc.log_model(model, input_example=X)"),
]


def project() -> None:
    "A folder with data, a notebook and a Git history."
    ROWS.assign(left=LEFT).to_csv("customers.csv", index=False)
    cells = [nbformat.v4.new_code_cell(source, id=name, metadata={"tags": [name]} if name == "parameters" else {}) for name, source in NOTEBOOK]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), "train.ipynb")
    Path(".gitignore").write_text(".mlcycle/\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "The project"]):
        subprocess.run(["git", "-c", "user.name=Anna", "-c", "user.email=anna@example.org", *command], check=True)


def track() -> None:
    "Runs that were written by hand: a parent with a child, and one that failed."
    with mlc.run("baseline", experiment="churn", params={"C": 0.5, "solver": "lbfgs", "columns": ["age", "calls"], "seed": None}) as run:
        for step, loss in enumerate([0.7, 0.5, float("nan"), -0.0]):
            run.log_metric("loss", loss, step=step)
        run.log_metrics({"accuracy": 5 / 6, "epochs": 2**53})
        run.set_tags({"owner": "anna", "stage": "first"})
        run.log_text("six customers\n", "notes/read.txt")
        run.log_input(ROWS, "customers", role="train", source="customers.csv")
        model = LogisticRegression(C=0.5).fit(ROWS, LEFT)
        run.log_model(model, input_example=ROWS)
        run.log_text(pd.Series(model.predict_proba(ROWS)[:, 1]).to_json(double_precision=15), "predictions.json")
        run.warn("the sixth row looks odd")
        with mlc.run("fold-1") as child:
            child.log_metric("accuracy", 0.5)
    try:
        with mlc.run("broken", experiment="churn", params={"C": -1.0}):
            raise ValueError("C must be positive")
    except ValueError:
        pass


def objective(depth: int, rate: float) -> dict[str, float]:
    "What the study minimizes."
    return {"loss": (depth - 3) ** 2 + rate}


def registry() -> None:
    "Four versions, and a champion that went 1, 2, 3, back to 2, on to 4: with a reason that begins like that of a rollback."
    for number in range(2, 5):
        assert mlc.register("baseline", "churn").number == number
    for number, why in ((1, "first to pass"), (2, "better recall"), (3, "")):
        mlc.promote(f"churn/{number}", why=why)
    mlc.rollback("churn@champion", "complaints")
    mlc.promote("churn/4", why="rolled back from 3, now mended")
    mlc.promote("churn/3", "challenger", "to compare")
    models.move_alias(current_store(), "churn", "challenger", None, "comparison is over")


def main() -> None:
    "Make the project, fill its store, and pack that."
    project()
    Path(".mlcycle").mkdir()
    track()
    mlc.run_notebook("train.ipynb", {"C": 2.0}, experiment="churn", name="from-notebook", register="churn", tags={"owner": "anna"}, progress=False)
    mlc.tune(objective, ["depth=int(1,6)", "rate=loguniform(1e-3,1)"], metric="loss", trials=5, seed=0, study="depths", experiment="tuning",
             progress=False)
    registry()
    version = opening.stored_version(current_store().db)
    current_store().close()
    with sqlite3.connect(".mlcycle/mlcycle.db") as con:
        con.execute("UPDATE captures SET data = json_replace(data, '$.cpu', 'some processor', '$.memory', 16000000000, '$.kernel', '6.1.0')"
                    " WHERE provider = 'hardware'")  # those of the real machine are nobody's business
        con.commit()
        con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    con.close()
    with tarfile.open(f"store-{version}.tar.gz", "w:gz", compresslevel=9) as archive:
        for path in [Path(".mlcycle/mlcycle.db"), *sorted(p for p in Path(".mlcycle/artifacts").rglob("*") if p.is_file())]:
            archive.add(path, path.relative_to(".mlcycle"), filter=lambda info: info.replace(uid=0, gid=0, uname="", gname="", mtime=0, deep=False))


if __name__ == "__main__":
    main()
