"What takes several processes to see: concurrent registration, and a file larger than what memory may grow by."
import json
import subprocess
import sys

import numpy as np
from sklearn.linear_model import LogisticRegression

from mlcycle.registry.packaging import package
from mlcycle.store import models, runs
from mlcycle.store.connect import open_store

X = np.array([[0.0], [1.0], [2.0], [3.0]])
REGISTER = """
import sys
from mlcycle.registry.versions import register
from mlcycle.store.connect import open_store
store = open_store(sys.argv[1])
print(*(register("logistic", "churn", store=store).number for _ in range(5)))
"""
PREDICT = """
import json, resource, sys
import pandas, pyarrow.parquet, sklearn.linear_model, skops.io  # what a warm process has loaded anyway
from mlcycle.registry.predict import predict_file
from mlcycle.store.connect import open_store
store = open_store(sys.argv[1])
predict_file("churn", sys.argv[2], sys.argv[3], store=store, chunk_rows=5000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = predict_file("churn", sys.argv[4], sys.argv[3], store=store, chunk_rows=5000)
print(json.dumps({"rows": result.rows, "grown": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before}))
"""


def stored(folder):
    "A store with one logged model."
    store = open_store(folder / "mlcycle.db")
    run = runs.create(store, "churn", "logistic")
    package(store, run, LogisticRegression().fit(X, [0, 0, 1, 1]), input_example=X)
    return store


def test_concurrent_registration_gives_each_its_own_number(tmp_path):
    "Four processes register five versions each at once: the numbers are 1 to 20, none twice and none lost."
    store = stored(tmp_path)
    jobs = [subprocess.Popen([sys.executable, "-c", REGISTER, str(tmp_path / "mlcycle.db")], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    numbers = [int(number) for job in jobs for number in job.communicate(timeout=120)[0].split()]
    assert sorted(numbers) == list(range(1, 21))
    assert models.get_model(store, "churn").versions == tuple(range(1, 21))


def test_predicting_a_large_file_takes_constant_memory(tmp_path):
    "A file forty times as long as the first adds less memory than a tenth of it would take as a table."
    from mlcycle.registry.versions import register

    register("logistic", "churn", store=stored(tmp_path))
    small, large = tmp_path / "small.csv", tmp_path / "large.csv"
    values = np.random.default_rng(0).normal(size=20_000)
    body = "\n".join(map(str, values)) + "\n"
    small.write_text("x\n" + body)
    large.write_text("x\n" + body * 40)
    done = subprocess.run([sys.executable, "-c", PREDICT, str(tmp_path / "mlcycle.db"), str(small), str(tmp_path / "out.csv"), str(large)],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["rows"] == 800_000
    assert seen["grown"] < 8_000, f"grew by {seen['grown']} KiB"  # as a table with its predictions: 32 MB and more
