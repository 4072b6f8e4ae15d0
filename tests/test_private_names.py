"""Other libraries' private names that mlcycle uses: the one list of them, with what breaks where one is missing.

A new version of such a library may drop or change them without notice; `settings.ini` therefore has upper bounds for the first five. When a name
is gone, the list says which part of mlcycle needs another way.
"""
from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "mlcycle"


class Use(NamedTuple):
    "A private name, the modules that use it, and what breaks without it."
    name: str      # `module:object.attribute`
    modules: str   # Below mlcycle, separated by blanks
    breaks: str


CHECKPOINTING, IDENTITY, KERNEL, POOL = (f"notebooks/warm/{name}" for name in ("checkpointing", "identity", "kernel", "pool"))
WAITING = " ".join(f"notebooks/warm/waiting_{name}" for name in ("client", "command", "loop", "server"))
CLIENT, BUSY, TREES, BUFFERS = "notebooks/execute/client", "ui/widgets/busy", "registry/safety/trees", "registry/safety/buffers"
STREAM, APP, BASE = "ipykernel.iostream:OutStream", "ipykernel.kernelapp:IPKernelApp", "ipykernel.kernelbase:Kernel"
RDB, STUDY, TRIAL = "optuna.storages:RDBStorage", "optuna:Study", "optuna:Trial"

USES: dict[str, list[Use]] = {
    "ipykernel": [
        Use(f"{STREAM}._io_loop", CHECKPOINTING, "a kernel that continues another flushes its prints on an event loop that does not run"),
        Use(f"{STREAM}._master_pid", CHECKPOINTING, "its prints are taken for those of a child process, and lost"),
        Use(f"{STREAM}._buffer_lock", CHECKPOINTING, "a print waits for ever for a lock that a thread held at the moment of the fork"),
        Use(f"{STREAM}._flush_pending", CHECKPOINTING, "no flush is scheduled where one was pending at the moment of the fork"),
        Use(f"{STREAM}._subprocess_flush_pending", CHECKPOINTING, "the same, for what child processes print"),
        Use(f"{STREAM}._local", CHECKPOINTING, "prints are attributed to the message that the first kernel was handling"),
        Use(f"{STREAM}._should_watch", CHECKPOINTING, "it is unknown whether the stream has a pipe that must be made anew"),
        Use(f"{STREAM}._original_stdstream_fd", CHECKPOINTING, "what native code prints goes to the pipe of the first kernel"),
        Use(f"{STREAM}._original_stdstream_copy", CHECKPOINTING, "what a run writes past Jupyter goes to the log of another run"),
        Use(f"{STREAM}._fid", CHECKPOINTING, "the thread that reads native prints reads the pipe of the first kernel"),
        Use(f"{STREAM}._watch_pipe_fd", CHECKPOINTING, "native prints are not shown"),
        Use(f"{BASE}._main_asyncio_lock", CHECKPOINTING, "the first cell waits for a lock of the old event loop"),
        Use(f"{BASE}._publish_status", BUSY, "widgets are not answered while a cell runs"),
        Use(f"{APP}._ports", KERNEL, "mlcycle's `log_connection_info` sets it in place of ipykernel's; whatever reads it there sees no ports"),
        Use("ipykernel.kernelbase:Kernel._allow_stdin", "display", "results are widgets where nobody can answer them, as in a batch run; or never"),
    ],
    "IPython": [
        Use("IPython.core.interactiveshell:InteractiveShell._showtraceback", "ui/magics/tracked_cell",
            "a failing tracked cell shows its traceback twice"),
    ],
    "traitlets": [
        Use("traitlets.config:SingletonConfigurable._walk_mro", "notebooks/warm/kernel_answers", "imports are told that there is no shell"),
        Use("traitlets.config:SingletonConfigurable._instance", "notebooks/warm/kernel_answers", "the same"),
        Use("traitlets:HasTraits._trait_values", CHECKPOINTING, "garbage collection in a fork closes sockets of the kernel that it was forked from"),
    ],
    "jupyter_client": [
        Use("jupyter_client.manager:KernelManager._async_interrupt_kernel", "notebooks/warm/manager",
            "an idle kernel is interrupted before it ends, which costs time in each run"),
        Use("jupyter_client.manager:KernelManager._async_wait", "notebooks/warm/manager",
            "the end of a kernel is noticed up to a tenth of a second late"),
        Use("jupyter_client.client:KernelClient._handle_kernel_info_reply", "notebooks/warm/manager",
            "the client does not adapt to the protocol version of the kernel"),
    ],
    "nbclient": [
        Use("nbclient.client:NotebookClient._async_cleanup_kernel", "notebooks/execute/run_kernel", "kernels are left running after a run"),
        Use("nbclient.client:NotebookClient._check_raise_for_error", f"{CLIENT} notebooks/execute/redacting",
            "secrets appear in error messages, and a cell that calls exit() is not noticed"),
    ],
    "papermill": [
        Use("papermill.iorw:LocalHandler._cwd", "notebooks/execute/saving", "an executed notebook is saved relative to the wrong folder"),
    ],
    "optuna": [
        Use("optuna.storages:_rdb", "tune/trial_storage", "trials are read through Optuna's object mapper: slower by an order of magnitude"),
        Use(f"{RDB}._get_trials", "tune/trial_storage", "the same"),
        Use(f"{RDB}._build_frozen_trial_from_trial_model", "tune/trial_storage", "rows of the database cannot be turned into trials"),
        Use("optuna.storages._rdb.models:TrialModel._datetime_start_utc", "tune/trial_storage", "trials read this way have no start time"),
        Use("optuna.storages._rdb.models:TrialModel._datetime_complete_utc", "tune/trial_storage", "trials read this way have no end time"),
        Use(f"{STUDY}._storage", "tune/asking tune/heartbeats ui/views/studies",
            "trials cannot be handed back or kept alive; pictures of studies are not cached"),
        Use(f"{TRIAL}._trial_id", "tune/asking tune/heartbeats", "trials cannot be handed back or kept alive"),
    ],
    "Python": [
        Use("atexit:_run_exitfuncs", KERNEL, "exit handlers of a notebook do not run"),
        Use("threading:_shutdown", KERNEL, "threads of a notebook are not waited for when its kernel ends"),
        Use("os:_exit", f"{CHECKPOINTING} notebooks/warm/forking {KERNEL} {WAITING}",
            "a fork runs the exit handlers of the process it was forked from"),
        Use("sys:_getframe", "notebooks/warm/variables", "no process that has done imports is shared where a library goes through all variables"),
        Use("weakref:finalize._exitfunc", f"{CHECKPOINTING} {IDENTITY}", "temporary folders of a checkpoint are not removed, or removed twice"),
        Use("weakref:finalize._registered_with_atexit", IDENTITY, "temporary folders that a forked kernel makes are not removed"),
        Use("weakref:finalize._registry", IDENTITY, "a forked kernel removes temporary folders of the process it was forked from"),
        Use("multiprocessing.process:BaseProcess._config", f"{IDENTITY} track/current",
            "forked kernels share one authentication key; processes of a pool do not find the run in which they were started"),
        Use("tempfile:_name_sequence", IDENTITY, "forked kernels choose the same temporary names"),
        Use("sys:_getframe", "notebooks/warm/entropy", "it is unknown who draws randomness from the system, and nothing is shared"),
        Use("random:_urandom", "notebooks/warm/entropy", "generators that are made without a seed are not noticed, and runs of a sweep repeat them"),
        Use("uuid:_last_timestamp", IDENTITY, "time-based UUIDs of forked kernels start from one another's"),
        Use("json:__spec__._initializing", "track/autolog/imports", "a module is patched for autologging before it is complete"),
    ],
    "matplotlib": [
        Use("matplotlib:RcParams._set", IDENTITY, "a forked kernel cannot choose its backend without importing it"),
    ],
    "matplotlib_inline": [
        Use("matplotlib_inline.backend_inline:show._draw_called", "track/autolog/figures", "the figure of the present cell is not shown"),
        Use("matplotlib_inline.backend_inline:show._to_draw", "track/autolog/figures", "the same"),
    ],
    "joblib": [
        Use("joblib:Parallel._backend", "track/autolog/fits", "fits in joblib's threads are logged as runs of their own"),
    ],
    "skops": [
        Use("skops.io._utils:whichmodule", "registry/safety/estimators", "importing skops takes almost half a second more"),
        Use("skops.io._trusted_types:all_estimators", "registry/safety/estimators", "importing skops imports all of scikit-learn"),
    ],
    "lightgbm": [
        *[Use(f"lightgbm:LGBMClassifier.{name}", "registry/flavours/lightgbm", "a stored classifier has lost its classes or its best round")
          for name in ("_best_iteration", "_class_map", "_le")],
    ],
    "alembic": [
        Use("alembic.script:ScriptDirectory._upgrade_revs", "store/opening", "stores cannot be migrated in one transaction"),
    ],
    "scikit-learn": [
        *[Use(f"sklearn.{name}", " ".join(f"registry/compiled/{module}" for module in modules.split()), "such models have no compiled form any more")
          for name, modules in (
            ("ensemble:GradientBoostingClassifier._raw_predict_init", "sklearn_trees"),
            ("ensemble:GradientBoostingClassifier._loss", "sklearn_trees"),
            ("ensemble:HistGradientBoostingClassifier._baseline_prediction", "sklearn_trees"),
            ("ensemble:HistGradientBoostingClassifier._bin_mapper", "graphs sklearn_trees"),
            ("ensemble:HistGradientBoostingClassifier._predictors", "sklearn_trees"),
            ("ensemble:HistGradientBoostingClassifier._preprocessor", "graphs"), ("preprocessing:OneHotEncoder._infrequent_enabled", "steps"))],
        Use("sklearn.utils:_safe_indexing", "tune/estimators", "folds of lists and DataFrames cannot be taken when an estimator is tuned"),
        Use("sklearn.compose:ColumnTransformer._transformer_to_input_indices", "registry/infer registry/compiled/graphs registry/compiled/steps",
            "columns of a signature are not found in a ColumnTransformer"),
        *[Use(f"sklearn.{name}", TREES, "what a stored gradient boosting holds is not checked before it predicts") for name in (
            "ensemble:HistGradientBoostingClassifier._bin_mapper", "ensemble:HistGradientBoostingClassifier._predictors",
            "ensemble:HistGradientBoostingClassifier._preprocessor")],
        Use("sklearn.ensemble:GradientBoostingClassifier._loss", "registry/safety/boosting", "what a first model answers may get another shape"),
        Use("sklearn.neighbors:RadiusNeighborsClassifier._y", "registry/safety/counts", "labels that numpy counts are not checked before it does"),
        *[Use(f"sklearn.preprocessing:{name}", "registry/safety/columns", "an encoder writes outside of the matrix that it makes") for name in (
            "MultiLabelBinarizer._cached_dict", "OneHotEncoder._default_to_infrequent_mappings", "OneHotEncoder._drop_idx_after_grouping",
            "OneHotEncoder._infrequent_enabled", "OneHotEncoder._n_features_outs")],
        *[Use(f"sklearn.{name}", BUFFERS, "what a stored model holds is not checked before native code reads it") for name in (
            "svm:SVC._n_support", "svm:SVC._dual_coef_", "svm:SVC._impl", "svm:SVC._intercept_", "svm:SVC._probA", "svm:SVC._probB",
            "svm:SVC._sparse", "neighbors:KNeighborsClassifier._fit_X", "neighbors:KNeighborsClassifier._y", "cluster:HDBSCAN._single_linkage_tree_",
            "cluster:KMeans._n_threads", "cluster:BisectingKMeans._bisecting_tree")],
    ],
}

LISTED = {(use.name.rsplit(".", 1)[-1].rsplit(":", 1)[-1], module) for uses in USES.values() for use in uses for module in use.modules.split()}


@cache
def attributes(file: str) -> dict[str, frozenset[str]]:
    "What each class of a source file defines, annotates or uses on `self`."
    names: dict[str, frozenset[str]] = {}
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    for cls in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        inside = list(ast.walk(cls))
        names[cls.name] = frozenset([node.name for node in inside if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
                                    + [node.id for node in inside if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
                                    + [node.attr for node in inside if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "self"])
    return names


def defines(cls: type, name: str) -> bool:
    "Whether a class or one of its bases has a name, or uses it on its instances."
    if hasattr(cls, name):
        return True
    files = ((base.__name__, getattr(sys.modules[base.__module__], "__file__", None) or "") for base in cls.__mro__)
    return any(name in attributes(file).get(base, ()) for base, file in files if file.endswith(".py"))


@pytest.mark.parametrize("use", [use for uses in USES.values() for use in uses], ids=lambda use: use.name)
def test_listed_names_exist(use: Use) -> None:
    "A name that a new version of a library has dropped is found here, not in somebody's run."
    module, _, path = use.name.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    assert defines(owner, name) if isinstance(owner, type) else hasattr(owner, name), use.breaks


# ---- that the list is complete

def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and not name.startswith(("_repr_", "_ipython_", "_mlcycle_"))


@cache
def trees() -> dict[str, ast.Module]:
    "Modules below mlcycle, parsed."
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "_modidx.py"]
    return {path.relative_to(PACKAGE).with_suffix("").as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def used(tree: ast.AST) -> Iterator[tuple[str, str]]:
    "Private attributes in some code: the name, and the text of the object that it is an attribute of."
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            yield node.attr, ast.unparse(node.value)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr") and len(node.args) > 1:
            name = node.args[1]
            if isinstance(name, ast.Constant) and private(str(name.value)):
                yield str(name.value), ast.unparse(node.args[0])
        elif isinstance(node, ast.ImportFrom) and not node.level and not (node.module or "").startswith(("__future__", "mlcycle")):
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from ((part, node.module or "") for part in parts if private(part))


@cache
def own_names() -> frozenset[str]:
    "Private names that mlcycle itself defines: functions, classes, methods, variables, and what it sets on `self` or `cls`."
    names: set[str] = set()
    for node in (node for tree in trees().values() for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and getattr(node.value, "id", "") in ("self", "cls"):
            names.add(node.attr)
    return frozenset(names)


def test_no_other_library_has_an_unlisted_private_name_in_use() -> None:
    "A private name that mlcycle does not define is somebody else's."
    foreign = {(name, module) for module, tree in trees().items() for name, _ in used(tree) if name not in own_names()}
    assert sorted(foreign - LISTED) == []


def imported(tree: ast.Module) -> dict[str, tuple[str, str]]:
    "What a module imports by name, anywhere in it: name to module and original name."
    return {alias.asname or alias.name: (node.module or "", alias.name)
            for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level for alias in node.names}


def absolute(module: str, tree: ast.Module) -> dict[str, tuple[str, str]]:
    "The same, with relative imports as modules below mlcycle."
    names = {}
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level):
        parts = ("mlcycle/" + module).split("/")[:-node.level] + (node.module or "").split(".")
        names |= {alias.asname or alias.name: (".".join(filter(None, parts)), alias.name) for alias in node.names}
    return imported(tree) | names


def library_classes(module: str, cls: ast.ClassDef) -> Iterator[type]:
    "The classes of other distributions that a class of mlcycle derives from, directly or through mlcycle's own."
    tree = trees()[module]
    names = absolute(module, tree)
    local = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for base in cls.bases:
        name = ast.unparse(base)
        if name in names and names[name][0].startswith("mlcycle"):
            home = names[name][0].removeprefix("mlcycle.").replace(".", "/")
            yield from (found for node in ast.walk(trees()[home]) if isinstance(node, ast.ClassDef) and node.name == names[name][1]
                        for found in library_classes(home, node))
        elif name in names:
            found = getattr(importlib.import_module(names[name][0]), names[name][1])
            if isinstance(found, type) and found.__module__.partition(".")[0] in USES:
                yield found
        elif name in local and local[name] is not cls:
            yield from library_classes(module, local[name])


def test_no_subclass_overrides_an_unlisted_private_name() -> None:
    "A method of mlcycle that has the name of a library's private one replaces it, wanted or not."
    overridden = set()
    for module, tree in trees().items():
        for cls in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
            names = {node.name for node in cls.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
            names |= {name for name, owner in used(cls) if owner in ("self", "cls", "super()")}
            for base in library_classes(module, cls):
                overridden |= {(name, module) for name in names if private(name) and defines(base, name)}
    assert sorted(overridden - LISTED) == []


def test_nothing_is_listed_that_is_not_used() -> None:
    "The list says where a name is used; an entry that is out of date misleads."
    names = {(name, module) for module, tree in trees().items() for name, _ in used(tree)}
    names |= {(node.name, module) for module, tree in trees().items() for node in ast.walk(tree)
              if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert sorted(LISTED - names) == []
