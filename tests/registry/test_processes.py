"What takes several processes to see: concurrent registration, and a file larger than what memory may grow by."
import json
import subprocess
import sys

import numpy as np
import pytest
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


CELLS = [
    "import os\nimport re\nfrom dataclasses import dataclass\nfrom pathlib import Path\n"
    "import numpy as np\nimport pandas as pd\nimport mlcycle as mlc\n"
    "from sklearn.base import BaseEstimator, TransformerMixin\nfrom sklearn.linear_model import LogisticRegression\n"
    "from sklearn.pipeline import make_pipeline\nfrom sklearn.preprocessing import FunctionTransformer\nmlc.autolog()",
    "BIG, WORDS = 2**60 + 1, re.compile('A', re.I)\n@dataclass\nclass Options:\n    low: float = -1.5\n    high: float = 1.5",
    "def trace():\n    with open('ran', 'a') as out:\n        out.write('x')\n    return True\n"
    "def clipped(X, options):\n    return np.clip(X, options.low, options.high)",
    "class Bare:\n    traced = trace()",
    "class Clip(TransformerMixin, BaseEstimator):\n    def __init__(self, options=Options()):\n        self.options = options\n"
    "    def fit(self, X, y=None):\n        self.n_features_in_ = X.shape[1]\n        self.big_ = BIG\n        return self\n"
    "    def transform(self, X):\n        assert Bare.traced and WORDS.search('xa')\n        return clipped(np.asarray(X), self.options)",
    "def squared(X):\n    return X * X",
    "X = pd.DataFrame({'a': np.arange(-8.0, 8.0), 'b': np.arange(16.0)})\ny = (X['a'] > 1).astype(int)",
    "%%track forest -e churn\nmodel = make_pipeline(FunctionTransformer(squared), Clip(), LogisticRegression()).fit(X, y)\n"
    "try:\n    mlc.log_model(model, 'own', X)\nexcept mlc.MlcycleError as e:\n    print(e)\n"
    "mlc.log_model(model, 'own', X, code=[squared, Clip])\nprint('ANSWER', model.predict_proba(X)[:, 1].round(12).tolist())",
]
ELSEWHERE = """
import sys
import mlcycle as mlc
import pandas as pd
X = pd.read_csv("x.csv")
mlc.register("forest", "clipped", "own")
for ask in (lambda **say: mlc.load_model("clipped", **say), lambda **say: mlc.predict("clipped", X, **say)):
    try:
        ask()
    except mlc.errors.UnsafeModelError as e:
        print("REFUSED", "allow_pickle=True" in str(e))
"""
USED = """
import mlcycle as mlc
import pandas as pd
X = pd.read_csv("x.csv")
print("ANSWER", mlc.predict("clipped", X, allow_pickle=True)["probability_1"].round(12).tolist())
model = mlc.load_model("clipped", allow_pickle=True)
assert model[1].big_ == 2**60 + 1 and type(model[1]).__module__ != "__main__"
from joblib import Parallel, delayed
[there] = Parallel(n_jobs=2)([delayed(model.predict)(X)])
assert there.tolist() == model.predict(X).tolist()
with mlc.run("again"):
    import sklearn
    mlc.log_model(sklearn.clone(model).fit(X, [0, 1] * 8), "own", X, code=[type(model[1]), model[0].func])
"""


@pytest.mark.parametrize("stock", [False, True], ids=["forked kernel", "Jupyter's kernel"])
def test_what_the_notebook_defines_goes_along_as_source_and_runs_only_by_consent(tmp_path, stock):
    "A pipeline of the notebook's own class and function predicts the same in another process; until somebody agrees, no command runs its source."
    from tests.ui.kernels import Kernel, shown, started

    (tmp_path / ".mlcycle").mkdir()
    with started(tmp_path, stock) as (manager, client):
        kernel = Kernel(manager, client)
        kernel.run("%load_ext mlcycle")
        for cell in CELLS:
            status, outputs = kernel.run(cell)
            assert status == "ok", outputs
    text = shown(outputs)
    assert "defines: Clip, Options, squared." in text and "code=[Clip, Options, squared]" in text and "flavour=" not in text
    (tmp_path / "ran").unlink()
    rows = "a,b\n" + "".join(f"{a}.0,{b}.0\n" for a, b in zip(range(-8, 8), range(16), strict=True))
    (tmp_path / "x.csv").write_text(rows)

    def python(*arguments):
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout + done.stderr

    code, said = python("-c", ELSEWHERE)
    assert (code, said.count("REFUSED True")) == (0, 2), said
    for command, expected in [(("show", "forest"), 0), (("show", "clipped"), 0), (("fsck",), 0), (("promote", "clipped/1", "champion"), 0),
                              (("predict", "clipped", "x.csv", "-o", "out.csv"), 1)]:
        code, said = python("-m", "mlcycle", *command)
        assert code == expected, said
    assert not (tmp_path / "ran").exists(), "the stored source ran before anybody agreed"
    code, said = python("-c", USED)
    answer = text.partition("ANSWER ")[2].splitlines()[0]
    assert code == 0 and f"ANSWER {answer}" in said, said
    assert (tmp_path / "ran").exists(), "the source was harmless: this test would prove nothing"


@pytest.mark.parametrize("how", ["mlcycle run", "mlcycle run --fresh", "papermill"])
def test_a_batch_run_stores_what_its_notebook_defines(tmp_path, how):
    "A transformer of the notebook's own that learns nothing: the run of a file has no session whose history could tell the source."
    import nbformat

    cells = ["factor = 2.0", "import mlcycle as mlc, numpy as np, pandas as pd\nfrom sklearn.base import BaseEstimator, TransformerMixin\n"
             "from sklearn.linear_model import LogisticRegression\nfrom sklearn.pipeline import make_pipeline",
             "class Scaled(TransformerMixin, BaseEstimator):\n    def __init__(self, factor=1.0):\n        self.factor = factor\n"
             "    def fit(self, X, y=None):\n        return self\n    def transform(self, X):\n        return np.asarray(X) * self.factor",
             "X, y = pd.DataFrame({'a': [0.0, 1.0, 2.0, 3.0]}), [0, 0, 1, 1]\n"
             "mlc.log_model(make_pipeline(Scaled(factor), LogisticRegression()).fit(X, y), input_example=X, code=[Scaled])"]
    nodes = [nbformat.v4.new_code_cell(cell, id=f"c{i}", metadata={"tags": ["parameters"]} if i == 0 else {}) for i, cell in enumerate(cells)]
    spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=nodes, metadata=spec), tmp_path / "own.ipynb")
    (tmp_path / ".mlcycle").mkdir()
    command = ["mlcycle", *how.split()[1:], "own.ipynb", "-p", "factor", "3.0", "--name", "own"]
    if how == "papermill":
        command = ["papermill", "own.ipynb", "out.ipynb", "--engine", "mlcycle", "-p", "factor", "3.0", "--no-progress-bar"]
    done = subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    asked = ("import mlcycle as mlc, pandas as pd\nmodel = mlc.load_model(mlc.runs()['id'][0], allow_pickle=True)\n"
             "print(model[0].factor, type(model[0]).__module__ != '__main__', model.predict(pd.DataFrame({'a': [0.0, 3.0]})).tolist())")
    there = subprocess.run([sys.executable, "-c", asked], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert there.stdout.split(maxsplit=2) == ["3.0", "True", "[0, 1]\n"], there.stdout + there.stderr
