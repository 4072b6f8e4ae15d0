"Files made to crash or to take over the process that loads them: proof that they would, and that here they cannot."
import io
import json
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import skops.io
from sklearn.datasets import load_iris
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from mlcycle.errors import UnsafeModelError
from mlcycle.registry import packaging
from mlcycle.registry.flavours.sklearn import flavour
from mlcycle.registry.manifest import Manifest
from mlcycle.store import artifacts, runs
from mlcycle.store.connect import open_store

X, y = load_iris(return_X_y=True)
FAR = 1 << 27  # Index far outside of any array here, times the size of a node: gigabytes away


def bend(path, change):
    "Rewrite the arrays of a skops file; `change` gets each and says whether it changed it."
    with zipfile.ZipFile(path) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    changed = 0
    for name in [name for name in parts if name.endswith(".npy")]:
        array = np.load(io.BytesIO(parts[name]))
        if change(array):
            changed += 1
            out = io.BytesIO()
            np.save(out, array)
            parts[name] = out.getvalue()
    assert changed, "the attack must hit something"
    with zipfile.ZipFile(path, "w") as target:
        for name, data in parts.items():
            target.writestr(name, data)


def at_root(field, value):
    "Bend one field of every node array's root."
    def change(array):
        if array.dtype.names and field in array.dtype.names and len(array) > 1:
            array[field][0] = value
            return True
        return False
    return change


def all_leaves_far_away(array):
    "Neighbour index nodes that end far behind the last point."
    if array.dtype.names and "idx_end" in array.dtype.names:
        array["is_leaf"], array["idx_start"], array["idx_end"] = 1, 0, FAR * 8
        return True
    return False


def wrong_count(array):
    "Support vector counts that still add up, so that scikit-learn's own look passes, but begin below zero."
    if array.dtype == np.int32 and array.shape == (3,) and 0 < array.sum() < 150:
        array[:] = [-FAR, array.sum() + FAR, 0]
        return True
    return False


ATTACKS = {
    "forest, child": (RandomForestClassifier(3, random_state=0), at_root("left_child", FAR)),
    "forest, feature": (RandomForestClassifier(3, random_state=0), at_root("feature", FAR * 16)),
    "gradient boosting, child": (GradientBoostingClassifier(n_estimators=2), at_root("left_child", FAR)),
    "histogram boosting, feature": (HistGradientBoostingClassifier(max_iter=2), at_root("feature_idx", FAR * 16)),
    "neighbours, leaf": (KNeighborsClassifier(algorithm="kd_tree", leaf_size=10), all_leaves_far_away),
    "support vectors, counts": (SVC(), wrong_count),
}
VICTIM = """
import sys, numpy as np, skops.io
from sklearn.datasets import load_iris
X, _ = load_iris(return_X_y=True)
model = skops.io.load(sys.argv[1], trusted=skops.io.get_untrusted_types(file=sys.argv[1]))
print("loaded", flush=True)
model.predict(np.ascontiguousarray(X))
"""


@pytest.mark.parametrize("attack", ATTACKS)
def test_bent_arrays_are_refused(attack, tmp_path):
    "Each of these loads without a word in plain skops, and kills the process when it predicts; we name the part instead."
    model, change = ATTACKS[attack]
    facts = flavour.save(model.fit(X, y), tmp_path)
    path = tmp_path / flavour.file
    bend(path, change)
    victim = subprocess.run([sys.executable, "-c", VICTIM, str(path)], capture_output=True, text=True, timeout=120)
    assert victim.stdout.startswith("loaded"), victim.stderr
    assert victim.returncode < 0, f"the attack does not crash any more ({victim.returncode}): {victim.stderr[-500:]}"
    with pytest.raises(UnsafeModelError, match="made to do harm"):
        flavour.load(tmp_path, facts)


def test_a_pickle_in_disguise_does_not_run(tmp_path):
    "A manifest that calls a pickle safe, or an example that is one, runs nothing: the installed flavour decides, not the document."
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    store = open_store(tmp_path / "mlcycle.db")
    run = runs.create(store, "attack")
    evil = pickle.dumps(Harm())
    digest, _ = store.blobs.put(evil)
    for named in ("pickle", "sklearn"):
        manifest = Manifest(named, False, "sklearn.linear_model.LinearRegression", {"model.pkl": digest, flavour.file: digest}, {"types": []})
        artifacts.put_bytes(store, run, manifest.to_bytes(), f"{named}/manifest.json", kind="model")
        with pytest.raises(Exception, match=r"allow_pickle=True|not a readable skops file"):
            packaging.load_packaged(store, manifest)
    assert not (tmp_path / "harm").exists()
    packaging.load_packaged(store, Manifest("pickle", True, "x", {"model.pkl": digest}, {}), allow_pickle=True).close()
    assert (tmp_path / "harm").exists(), "the pickle was harmless: this test would prove nothing"


def test_a_manifest_cannot_write_outside_its_folder(tmp_path):
    "File names in a manifest are content from somewhere: they may not become paths unchecked."
    store = open_store(tmp_path / "mlcycle.db")
    digest, _ = store.blobs.put(b"x")
    manifest = Manifest("sklearn", False, "x", {"../../escaped": digest}, {"types": []})
    with pytest.raises(Exception, match="could lead out"):
        packaging.load_packaged(store, manifest)


def test_the_list_in_the_manifest_cannot_add_types(tmp_path):
    "A file whose schema asks for os.system is refused though the manifest says that the type was recorded."
    facts = flavour.save(RandomForestClassifier(2).fit(X, y), tmp_path)
    path = tmp_path / flavour.file
    with zipfile.ZipFile(path) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    schema = json.loads(parts["schema.json"])
    schema["content"]["content"]["harm"] = {"__class__": "system", "__module__": "os", "__loader__": "FunctionNode", "__id__": 1}
    parts["schema.json"] = json.dumps(schema).encode()
    with zipfile.ZipFile(path, "w") as target:
        for name, data in parts.items():
            target.writestr(name, data)
    with pytest.raises(UnsafeModelError, match=r"os\.system"):
        flavour.load(tmp_path, {"types": [*facts["types"], "os.system"]})
    assert "os.system" in skops.io.get_untrusted_types(file=path)
