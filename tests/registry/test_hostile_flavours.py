"Bent files of other libraries' models: proof that the libraries would die of some, and that here none of them ends a process."
from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import catboost
import lightgbm as lgb
import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from skl2onnx import to_onnx
from sklearn.ensemble import RandomForestClassifier

from mlcycle.errors import ModelError, UnsafeModelError
from mlcycle.registry.flavours.base import get_flavour

rng = np.random.default_rng(0)
X = pd.DataFrame({"a": rng.random(90), "b": rng.random(90), "t": pd.Categorical(rng.choice(list("uvwxyz"), 90))})
Y = np.where(X["t"].isin(["x", "y"]) & (X["b"] > 0.5), 2, (X["a"] > 0.5).astype(int))
NUMBERS = X[["a", "b"]]
QUIET = {"iterations": 3, "depth": 3, "verbose": 0, "thread_count": 1, "allow_writing_files": False}
MODELS = {
    "xgboost": [lambda: xgb.XGBClassifier(n_estimators=3, max_depth=3, enable_categorical=True, n_jobs=1).fit(X, Y),
                lambda: xgb.train({"booster": "dart", "nthread": 1}, xgb.DMatrix(X, Y, enable_categorical=True), 3),
                lambda: xgb.XGBRegressor(n_estimators=2, multi_strategy="multi_output_tree", n_jobs=1).fit(NUMBERS, np.c_[Y, Y])],
    "lightgbm": [lambda: lgb.LGBMClassifier(n_estimators=3, num_leaves=5, verbose=-1, n_jobs=1).fit(X, Y),
                 lambda: lgb.LGBMRegressor(n_estimators=3, num_leaves=4, linear_tree=True, verbose=-1, n_jobs=1).fit(NUMBERS, Y)],
    "catboost": [lambda: catboost.CatBoostClassifier(**QUIET).fit(X.assign(t=X["t"].astype(str)), Y, cat_features=["t"]),
                 lambda: catboost.CatBoostRegressor(grow_policy="Lossguide", **QUIET).fit(NUMBERS, Y)],
    "onnx": [lambda: to_onnx(RandomForestClassifier(3, max_depth=3).fit(NUMBERS, Y), NUMBERS[:1].to_numpy().astype(np.float32))],
}
NUMBERS_AS_TEXT = ["-1", "0", "1", "3", "255", "134217728", "2147483647", "-2147483648", "1099511627776", "1e400", "1e-400", "nan",
                   '""', "[]", "null"]


def saved(kind: str, number: int) -> tuple[dict[str, Any], str, bytes]:
    "Facts, name and content of a sound model's one file."
    folder = Path(tempfile.mkdtemp())
    facts = get_flavour(kind).save(MODELS[kind][number](), folder)
    [path] = folder.iterdir()
    return facts, path.name, path.read_bytes()


def bends(data: bytes, chance: random.Random) -> bytes:
    "Some numbers replaced by others, in text; some bytes, in what is no text; sometimes the end cut off."
    try:
        text = data.decode()
    except UnicodeDecodeError:
        changed = bytearray(data)
        for _ in range(chance.choice([1, 2, 3])):
            changed[chance.randrange(len(changed))] = chance.choice([0, 127, 128, 255, chance.randrange(256)])
        data = bytes(changed)
    else:
        for _ in range(chance.choice([1, 1, 2])):
            spot = chance.choice(list(re.finditer(r"-?\d+(\.\d+)?", text)))
            text = text[:spot.start()] + chance.choice(NUMBERS_AS_TEXT) + text[spot.end():]
        data = text.encode()
    return data[:chance.randrange(len(data))] if chance.random() < 0.05 else data


LOADER = """
import json, sys, warnings
from pathlib import Path
import pandas as pd
from mlcycle.errors import ModelError
from mlcycle.registry.flavours.base import get_flavour
warnings.simplefilter("ignore")
kind, root = sys.argv[1], Path(sys.argv[2])
rows, counts = pd.read_parquet(root / "rows.parquet"), {"refused": 0, "loaded": 0}
for folder in sorted(root.glob("bent-*")):
    (root / "last").write_text(folder.name)
    try:
        model = get_flavour(kind).load(folder, json.loads((root / (folder.name[-1] + ".json")).read_text()))
    except ModelError:
        counts["refused"] += 1
        continue
    counts["loaded"] += 1
    for X in (rows, rows[["a", "b"]], rows.assign(t=rows["t"].astype(str))):
        try:
            model.predict(X)
        except Exception:
            pass
print(json.dumps(counts))
"""


@pytest.mark.parametrize("kind", MODELS)
def test_bent_files_are_refused_or_harmless(kind: str, tmp_path: Path) -> None:
    "Each is loaded, and asked if it loads, in one other process: it must come to its end, and every refusal must be an error of ours."
    chance = random.Random(kind)
    X.to_parquet(tmp_path / "rows.parquet")
    for number in range(len(MODELS[kind])):
        facts, name, data = saved(kind, number)
        (tmp_path / f"{number}.json").write_text(json.dumps(facts))
        for bent in range(120):
            folder = tmp_path / f"bent-{bent:03}-{number}"
            folder.mkdir()
            (folder / name).write_bytes(bends(data, chance))
    done = subprocess.run([sys.executable, "-c", LOADER, kind, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{(tmp_path / 'last').read_text()}: {done.stderr[-500:]}"
    counts = json.loads(done.stdout.splitlines()[-1])
    assert sum(counts.values()) == 120 * len(MODELS[kind]) and counts["refused"] > 10


VICTIMS = {
    "xgboost": ('"left_children": [', '"left_children": [134217728, ', r"\d+, ",
                "import sys, numpy as np, xgboost as x; b = x.Booster(); b.load_model(sys.argv[1]); print('loaded', flush=True); "
                "b.set_param({'nthread': 1}); b.predict(x.DMatrix(np.random.rand(50, 3), feature_names=['a', 'b', 't'], "
                "feature_types=['float', 'float', 'c']), validate_features=False)"),
    "lightgbm": ("split_feature=", "split_feature=1073741824 ", r"\d+ ",
                 "import sys, numpy as np, lightgbm as l; b = l.Booster(model_file=sys.argv[1]); b.pandas_categorical = None; "
                 "print('loaded', flush=True); b.predict(np.random.rand(50, 3))"),
}


@pytest.mark.parametrize("kind", VICTIMS)
def test_the_library_itself_dies_of_it(kind: str, tmp_path: Path) -> None:
    "One changed number ends the process that the library runs in; here it is named."
    before, after, number, code = VICTIMS[kind]
    facts, name, data = saved(kind, 0)
    text, count = re.subn(re.escape(before) + number, after, data.decode(), count=1)
    assert count == 1
    (tmp_path / name).write_text(text)
    victim = subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], capture_output=True, text=True, check=False)
    assert victim.returncode < 0, victim.stderr[-500:]
    with pytest.raises(UnsafeModelError, match="made to do harm"):
        get_flavour(kind).load(tmp_path, facts)


@pytest.mark.parametrize(("kind", "facts"), [
    ("xgboost", {"class": "XGBClassifier", "params": {"n_jobs": 100_000}}), ("xgboost", {"class": "os.system"}), ("xgboost", {"class": "XGBModel"}),
    ("lightgbm", {"class": "LGBMClassifier", "params": {"predict_disable_shape_check": True}}), ("catboost", {"class": "Pool"}),
    ("lightgbm", {"class": "LGBMClassifier", "params": {}, "fitted": {"_n_classes": 3}, "classes": {"dtype": "<U999999", "values": []}}),
    ("catboost", {"class": "CatBoost", "unfitted": True, "params": {"thread_count": 100_000}}),
])
def test_a_manifest_chooses_no_class_and_no_threads(kind: str, facts: dict[str, Any], tmp_path: Path) -> None:
    "What a manifest says beside a sound file is checked as the file is."
    sound, name, data = saved(kind, 0)
    (tmp_path / name).write_bytes(data)
    [part] = sound["parts"]
    with pytest.raises(ModelError):
        get_flavour(kind).load(tmp_path, {"parts": [{**part, "facts": facts}]})
    for file in ("../../etc/passwd", "nowhere", ""):
        with pytest.raises(ModelError, match="not there"):
            get_flavour(kind).load(tmp_path, {"parts": [{**part, "file": file}]})
