"Files made to crash or to take over the process that loads them: proof that they would, and that here they cannot."
import io
import json
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import skops
import skops.io
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn.cluster import FeatureAgglomeration
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_iris
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.feature_extraction import DictVectorizer, FeatureHasher
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier, LocalOutlierFactor, NearestNeighbors, RadiusNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MultiLabelBinarizer, OneHotEncoder
from sklearn.svm import SVC, SVR

from mlcycle.errors import ArtifactError, ModelError, UnsafeModelError
from mlcycle.registry import packaging
from mlcycle.registry.flavours.sklearn import flavour
from mlcycle.registry.manifest import Manifest, from_bytes
from mlcycle.registry.signatures import Column, Signature
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


def changed(model, **attributes):
    "A fitted model with other attributes."
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def starting_with(model):
    "A gradient boosting whose trees are added to what another model answers."
    return changed(GradientBoostingRegressor(n_estimators=2).fit(X, y), init_=model)


def averaging():
    "A first model that answers one row however many it is asked."
    target = TransformedTargetRegressor(regressor=LinearRegression(), transformer=FunctionTransformer()).fit(X, y)
    return changed(target, transformer_=FunctionTransformer(inverse_func=np.mean, inv_kw_args={"axis": 0, "keepdims": True}))


def without_a_column(model):
    "A histogram boosting whose preprocessing leaves columns out."
    (name, _, mask), *rest = model._preprocessor.transformers_
    model._preprocessor.transformers_ = [(name, "drop", mask), *rest]
    return model


def drawing_from(position):
    "A model that draws from a generator whose position lies outside of its numbers."
    generator = np.random.RandomState(0)
    state = generator.get_state(legacy=False)
    state["state"]["pos"] = position
    generator.set_state(state)
    return DummyClassifier(strategy="stratified", random_state=generator).fit(X, y)


def voting(member):
    "A vote whose second member is another one."
    vote = VotingClassifier([("first", DummyClassifier()), ("second", DummyClassifier())]).fit(X, y)
    vote.estimators_[1] = member
    return vote


NUMBERS = np.arange(20).reshape(-1, 1)
BENT = {
    "first model of fewer rows": lambda: starting_with(averaging()),
    "method replaced": lambda: starting_with(changed(LinearRegression().fit(X, y), predict=np.mean)),
    "columns dropped before histogram trees": lambda: without_a_column(
        HistGradientBoostingClassifier(max_iter=2, categorical_features=[0]).fit(NUMBERS, NUMBERS[:, 0] > 9)),
    "categories beyond the columns": lambda: changed(OneHotEncoder().fit(NUMBERS), categories_=[np.arange(10**6)]),
    "categories not sorted": lambda: changed(OneHotEncoder().fit(NUMBERS), categories_=[np.arange(20)[::-1].copy()]),
    "categories in a pipeline": lambda: make_pipeline(changed(OneHotEncoder().fit(NUMBERS), _n_features_outs=[3]), LinearRegression()),
    "words beyond the columns": lambda: changed(CountVectorizer().fit(["a word"]), vocabulary_={"word": 10**6}),
    "keys beyond the columns": lambda: changed(DictVectorizer().fit([{"a": 1}]), vocabulary_={"a": -4}),
    "labels beyond the columns": lambda: changed(MultiLabelBinarizer().fit([("a",)]), _cached_dict={"a": 10**6}),
    "words hashed to nothing": lambda: FeatureHasher(n_features=0),
    "texts hashed to nothing": lambda: HashingVectorizer(n_features=-5),
    "support vectors without values": lambda: changed(model := SVC().fit(csr_matrix(X), y), _dual_coef_=csr_matrix(model._dual_coef_.shape)),
    "another kind of support vectors": lambda: changed(SVR().fit(X, y), _impl="c_svc"),
    "generator behind its numbers": lambda: drawing_from(10**9),
    "generator before its numbers": lambda: drawing_from(-(2 * 10**9)),
    "neighbours without rows": lambda: changed(KNeighborsClassifier(algorithm="brute").fit(X, y), _fit_X=np.zeros((0, 4))),
    "outliers without rows": lambda: changed(LocalOutlierFactor(algorithm="brute", novelty=True).fit(X), _fit_X=np.zeros((0, 4))),
    "neighbours wider than their graph": lambda: changed(NearestNeighbors().fit(X), n_samples_fit_=5),
    "files named by rows": lambda: TfidfVectorizer(input="filename"),
    "files among the rows": lambda: CountVectorizer(input="file"),
    "group of columns of the largest number": lambda: changed(FeatureAgglomeration().fit(X), labels_=np.array([0, 1, 0, 2**63 - 1])),
    "label of the largest number": lambda: changed(RadiusNeighborsClassifier(2.0).fit(X, y), _y=np.where(y == 1, 2**63 - 1, y)),
    "vote for the largest number": lambda: voting(DummyClassifier(strategy="constant", constant=2**63 - 1)),
    "vote of a class of the largest number": lambda: voting(make_pipeline(
        changed(KNeighborsClassifier().fit(X, y), classes_=np.array([0, 1, 2**63 - 1])))),
    "vote of what computes": lambda: voting(LinearRegression().fit(X, y)),
    "thousands of threads": lambda: RandomForestClassifier(3, n_jobs=3000).fit(X, y),
    "hundreds of processes": lambda: changed(OneVsRestClassifier(LogisticRegression()).fit(X, y), n_jobs=255),
}


@pytest.mark.parametrize("name", BENT)
def test_what_compiled_code_would_follow_is_refused(name, tmp_path):
    "Fitted models with one part that does not fit: skops restores all of them, and most end the process when they predict."
    facts = flavour.save(BENT[name](), tmp_path)
    with pytest.raises(UnsafeModelError, match=r"made to do harm|is not loaded"):
        flavour.load(tmp_path, facts)


def entry(loader, name, **rest):
    "An entry of a skops file."
    module, _, name = name.rpartition(".")
    return {"__loader__": loader, "__module__": module, "__class__": name, **rest}


def listed(*entries):
    "The entry of a list."
    return entry("ListNode", "builtins.list", content=list(entries))


ONE = entry("JsonNode", "builtins.str", content="1")
CALLED = "sklearn.feature_selection._mutual_info.mutual_info_regression"
CALLS = {
    "constructor": entry("ConstructorFromReduceNode", CALLED, content=entry("TupleNode", "builtins.tuple", content=[ONE])),
    "list": entry("ListNode", CALLED, content=[ONE]),
    "set": entry("SetNode", CALLED, content=[ONE]),
    "dict": entry("DictNode", CALLED, content={}, key_types=listed()),
    "random state": entry("RandomStateNode", CALLED, content=ONE),
    "loss": entry("LossNode", CALLED, content=entry("DictNode", "builtins.dict", content={}, key_types=listed()), __reduce__={"args": ONE}),
    "type of a key": entry("DictNode", "builtins.dict", content={"1": ONE}, key_types=listed(entry("FunctionNode", CALLED))),
    "one number, two entries": listed({**ONE, "__id__": 7}, {**entry("FunctionNode", "numpy.mean"), "__id__": 7}),
    "itself": {**listed({**listed(), "__id__": 7}), "__id__": 7},
    "index without its state": entry("ObjectNode", "sklearn.neighbors._kd_tree.KDTree", content=entry("TupleNode", "builtins.tuple", content=[ONE])),
    "type that is only named": entry("ObjectNode", "numpy.number"),
    "function where a type is only named": entry("FunctionNode", "builtins.object"),
    "loop of k-means": entry("FunctionNode", "sklearn.cluster._kmeans._kmeans_single_lloyd"),
}


@pytest.mark.parametrize("name", CALLS)
def test_nothing_of_the_files_choice_is_called(name, tmp_path):
    "A function that is trusted where a function is meant would be called by many a loader; each is refused before skops constructs anything."
    from skops.io._protocol import PROTOCOL

    with zipfile.ZipFile(tmp_path / flavour.file, "w") as target:
        target.writestr("schema.json", json.dumps({**CALLS[name], "protocol": PROTOCOL, "_skops_version": skops.__version__}))
    with pytest.raises(UnsafeModelError):
        flavour.load(tmp_path, {"types": [CALLED, "numpy.mean", "sklearn.neighbors._kd_tree.KDTree", "sklearn.cluster._kmeans._kmeans_single_lloyd",
                                           "numpy.number", "builtins.object"]})


def test_a_file_that_unpacks_to_gigabytes_is_refused_before_it_is_unpacked(tmp_path):
    "The sizes in the directory are added up: a gigabyte of zeros is one megabyte on disk, and stays there."
    import tracemalloc

    with zipfile.ZipFile(tmp_path / flavour.file, "w", zipfile.ZIP_DEFLATED) as target, target.open("a.npy", "w", force_zip64=True) as member:
        for _ in range(256):
            member.write(bytes(1 << 22))
    tracemalloc.start()
    with pytest.raises(UnsafeModelError, match="would unpack to"):
        flavour.load(tmp_path, {"types": []})
    assert tracemalloc.get_traced_memory()[1] < 1 << 26
    tracemalloc.stop()


@pytest.mark.parametrize("digest", ["../../../../../../dev/zero", "../../../../../../etc/passwd", "a" * 63, "A" * 64, "", "ab/" + "c" * 61])
def test_what_is_no_digest_never_becomes_a_path(digest, tmp_path):
    "A digest may come from a manifest that anybody wrote: nothing outside of the store is read, and it cannot be learned what is there."
    store = open_store(tmp_path / "mlcycle.db")
    with pytest.raises(ArtifactError, match="64 hexadecimal digits"):
        store.blobs.read(digest)
    assert not store.blobs.exists(digest)
    with pytest.raises(ModelError, match="files"):
        from_bytes(Manifest("sklearn", False, "x", {"model.skops": digest}, {"types": []}).to_bytes())


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6)
SOUND = json.loads(Manifest("sklearn", False, "x", {"model.skops": "0" * 64}, {"types": []},
                            Signature((Column("a", "int64"),), (Column("prediction", "int64"),)), None, 0, {"numpy": "2"}).to_bytes())


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*SOUND, "other"]), JSON, st.sampled_from([None, "kind", "inputs", "outputs", "format"]))
def test_a_bent_manifest_is_read_or_refused(field, value, inside):
    "Whatever stands in a manifest's fields, it is a manifest whose parts have their types, or a ModelError."
    bent = {**SOUND, field: {**SOUND["signature"], inside: value} if field == "signature" and inside else value}
    try:
        manifest = from_bytes(json.dumps(bent).encode())
    except ModelError:
        return
    assert all(isinstance(part, str) for pair in manifest.files.items() for part in pair) and isinstance(manifest.facts, dict)
    assert from_bytes(manifest.to_bytes()) == manifest


@pytest.mark.parametrize("data", [b"[" * 200_000, b"\xff\xfe", b"", b"null", b"5", b'{"format": true}'])
def test_a_document_that_is_no_manifest_is_refused(data):
    "Nested too deeply, not text, not an object: one kind of error."
    with pytest.raises(ModelError):
        from_bytes(data)
