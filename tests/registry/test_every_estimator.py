"Every scikit-learn estimator that skops can store goes through our own list of types, and comes back the same."
import warnings

import numpy as np
import pytest
import skops.io
from sklearn.experimental import enable_halving_search_cv, enable_iterative_imputer  # noqa: F401
from sklearn.utils import all_estimators
from sklearn.utils._test_common.instance_generator import _construct_instances

from mlcycle.errors import ModelError, UnsafeModelError
from mlcycle.registry.flavours.sklearn import flavour
from mlcycle.registry.safety.trusted import ALLOWED

NEVER_STORED = {"Birch"}  # skops says so itself
NOT_BUILT = {"FrozenEstimator"}  # scikit-learn's own generator makes none


def inputs():
    "Data in every shape that some estimator asks for."
    rng = np.random.RandomState(0)
    X = np.abs(rng.rand(60, 4))
    y = (X[:, 0] + X[:, 1] > 1).astype(int)
    words = ["good day", "bad day", "good night", "bye bye"] * 15
    yield from [(X, y), (X, y + 1.0), (words, y), ([{"a": 1, "b": 2}] * 60, y), (X[:, 0], y), (X, np.c_[y, 1 - y]), (np.c_[y, y], y)]
    yield from [(y,), (words,), (X @ X.T,), ([("a", "b"), ("b",)] * 30,), (np.abs(rng.rand(10, 10)),)]


def fitted(estimator_class):
    "A fitted instance with the data that it took."
    estimator = next(iter(_construct_instances(estimator_class)))
    if "random_state" in estimator.get_params():
        estimator.set_params(random_state=0)  # some draw their predictions
    for data in inputs():
        try:
            return estimator.fit(*data), data[0]
        except Exception:
            continue
    return estimator, None  # stored unfitted: its parameters must survive all the same


@pytest.mark.filterwarnings("ignore")
def test_all_estimators_come_back(tmp_path):
    "What skops distrusts (forests and boosting among them) are covered by our list; nothing but Birch is refused."
    distrusted, failed, compared = {}, {}, 0
    for name, estimator_class in all_estimators():
        if name in NOT_BUILT:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, X = fitted(estimator_class)
        folder = tmp_path / name
        folder.mkdir()
        try:
            facts = flavour.save(model, folder)
            again = flavour.load(folder, facts)
        except ModelError as e:
            failed[name] = str(e)
            continue
        if facts["types"]:
            distrusted[name] = facts["types"]
        for verb in ("predict", "predict_proba", "transform"):
            if X is not None and hasattr(model, verb):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    try:
                        was = getattr(model, verb)(X)
                    except Exception:
                        continue  # not every estimator takes its training data again (some want other input)
                    now = getattr(again, verb)(X)
                was, now = (np.asarray(part.toarray() if hasattr(part, "toarray") else part) for part in (was, now))
                # BLAS sums in another order where an array lies differently in memory
                same = np.testing.assert_allclose if was.dtype.kind == "f" else np.testing.assert_array_equal
                same(now, was, err_msg=f"{name}.{verb}")
                compared += 1
    assert set(failed) == NEVER_STORED, failed
    assert len(distrusted) > 40  # 58 with scikit-learn 1.9, 41 with 1.8
    assert {kind for kinds in distrusted.values() for kind in kinds} <= ALLOWED
    assert compared > 200


def test_a_type_outside_the_list_is_never_loaded(tmp_path):
    "A file that asks for a type we do not list is refused even when its manifest claims that it was recorded."
    from scipy.stats import norm

    skops.io.dump({"x": norm(0, 1)}, tmp_path / flavour.file)
    types = skops.io.get_untrusted_types(file=tmp_path / flavour.file)
    assert types
    with pytest.raises(UnsafeModelError, match=r"scipy\.stats"):
        flavour.load(tmp_path, {"types": types})
