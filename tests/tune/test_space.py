"What spaces promise for every space and every text, which examples cannot show."
from __future__ import annotations

import itertools
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import nbformat
import optuna
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mlcycle.errors import UsageError
from mlcycle.notebooks.params.declared import infer
from mlcycle.tune.spaces.cells import check_against, space_of
from mlcycle.tune.spaces.domain_text import read_domain
from mlcycle.tune.spaces.domains import Domain, reading
from mlcycle.tune.spaces.domains import range_of as checked_range
from mlcycle.tune.spaces.expressions import Expression
from mlcycle.tune.spaces.files import parse_options, read_space
from mlcycle.tune.spaces.dimensions import Constraint, Dimension
from mlcycle.tune.spaces.space import Space

optuna.logging.set_verbosity(optuna.logging.WARNING)
FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

choices = st.lists(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
                   min_size=1, max_size=5, unique_by=lambda value: (isinstance(value, str), value)).filter(
    lambda values: not any(a == b for a, b in itertools.combinations(values, 2)))


@st.composite
def ranges(draw: st.DrawFn) -> Domain:
    "Every range that is allowed."
    kind = draw(st.sampled_from(["int", "float"]))
    number = st.integers(-2**53, 2**53) if kind == "int" else st.floats(-1e15, 1e15, allow_nan=False)
    step = draw(st.none() | (st.integers(1, 1000) if kind == "int" else st.floats(1e-6, 1e6)))
    try:
        with reading("", ""):
            return checked_range(kind, draw(number), draw(number), step, draw(st.booleans()))
    except UsageError:
        assume(False)
        raise


domains = st.one_of(choices.map(lambda values: Domain("choice", choices=tuple(values))), ranges())


def exact(value: Any) -> Any:
    "Equal only where the types are equal too: 1, 1.0 and True are three things."
    return json.dumps(value)


@FEW
@given(domains)
def test_text_and_json_are_lossless(domain: Domain) -> None:
    "What a domain shows can be pasted back, and what a study keeps is what was searched."
    read, when = read_domain(domain.text)
    assert when is None and exact(read.json()) == exact(domain.json())
    space = Space((Dimension("x", domain, None, "space.yaml:1", domain.text),))
    assert exact(Space.from_json(json.loads(json.dumps(space.json()))).json()) == exact(space.json())


@FEW
@given(st.integers(-10**6, 10**6), st.integers(1, 400), st.integers(1, 5000), st.integers(0, 9))
def test_float_steps_are_decimals(low: int, count: int, step: int, digits: int) -> None:
    "A grid of floats has the decimals that a person counts, first to last, and Optuna takes each for one of its own."
    scale = 10**digits
    domain = Domain("float", low / scale, (low + count * step) / scale, step / scale)
    values = domain.values()
    assert values == [(low + i * step) / scale for i in range(count + 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study = optuna.create_study()
        study.enqueue_trial({"x": values[-1]})
        assert Dimension("x", domain).suggest(study.ask()) == values[-1]


BOUNDED = ["{1, 2, 3}", "int(1, 4)", "int(2, 9, step=3)", "uniform(0, 1, step=0.25)", "uniform(0, 1, step=0.1)"]
OPERATORS = ["<", "<=", ">", ">=", "==", "!="]


@st.composite
def small_spaces(draw: st.DrawFn) -> Space:
    "Spaces with a grid, conditions on conditional dimensions, and constraints, in numbers."
    names = [f"p{i}" for i in range(draw(st.integers(1, 4)))]
    dims = []
    for i, name in enumerate(names):
        when = None
        if i and draw(st.booleans()):
            when = f"{draw(st.sampled_from(names[:i]))} {draw(st.sampled_from(OPERATORS))} {draw(st.sampled_from(['1', '2', '0.3', '0.5', '3']))}"
            if draw(st.booleans()):
                when += f" {draw(st.sampled_from(['and', 'or']))} not {draw(st.sampled_from(names[:i]))} in [1, 0.25, 5]"
        dims.append(Dimension(name, read_domain(draw(st.sampled_from(BOUNDED)))[0], when, name))
    limits = [Constraint(f"{draw(st.sampled_from(names))} * 2 {draw(st.sampled_from(OPERATORS))} {draw(st.sampled_from([*names, '4']))} + 1", f"c{i}")
              for i in range(draw(st.integers(0, 2)))]
    try:
        return Space(tuple(dims), tuple(limits))
    except UsageError as e:  # a condition that is never true
        assert "never true" in str(e)
        assume(False)
        raise


def brute(space: Space) -> set[str]:
    "The grid by Python's own `eval` over every value or absence of every dimension: nothing of the space's own logic."
    found = set()
    for values in itertools.product(*[[None, *each.values()] for each in space.dimensions]):
        params = {each.name: value for each, value in zip(space.dimensions, values, strict=True) if value is not None}
        right = True
        for each in space.dimensions:
            try:
                counts = each.when is None or bool(eval(each.when, {"__builtins__": {}}, dict.fromkeys(space.names) | params)
                                                   if all(name in params for name in space.names if name in each.when) else False)
            except TypeError:
                counts = False
            right &= counts == (each.name in params)
        for limit in space.constraints:
            if all(name in params for name in space.names if name in limit.text):
                right &= bool(eval(limit.text, {"__builtins__": {}}, params))
        if right:
            found.add(exact(params))
    return found


@FEW
@given(small_spaces())
def test_grid_is_what_brute_force_finds(space: Space) -> None:
    "Every allowed combination exactly once, for conditions on conditional dimensions and constraints."
    grid = [exact(params) for params in space.grid()]
    assert len(grid) == len(set(grid)) == space.grid_size() and set(grid) == brute(space)


@FEW
@given(small_spaces(), st.integers(0, 2**31))
def test_trials_get_what_counts(space: Space, seed: int) -> None:
    "A random trial gets exactly the dimensions that count, with their types, and the violations agree with what is feasible."
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    allowed = {exact(params) for params in Space(space.dimensions).grid()}
    for _ in range(3):
        trial = study.ask()
        params = space.suggest(trial)
        assert space.exact(trial.params) == params and space.violations(trial.params) == space.violations(params)
        assert exact(params) in allowed and list(params) == [name for name in space.names if name in params]
        violations = space.violations(params)
        assert (space.feasible(params) is None) == all(each <= 0 for each in violations) and len(violations) == len(space.constraints)


@FEW
@given(domains, st.integers(0, 2**31))
def test_every_domain_can_be_sampled(domain: Domain, seed: int) -> None:
    "Optuna makes of every allowed domain values of its type, inside of it."
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
    value = Dimension("x", domain).suggest(trial)
    if domain.kind == "choice":
        assert any(value is each or exact(value) == exact(each) for each in domain.choices)
    else:
        assert type(value) is {"int": int, "float": float}[domain.kind] and domain.low <= value <= domain.high


WORDS = ["uniform", "loguniform", "int", "logint", "choice", "float", "(", ")", "{", "}", "[", "]", ",", "=", "1", "0", "-2", "1e-4", "1e999", "nan",
         "step", "log", "low", "true", "none", "when", "x", "==", '"', "'", "\\", "#", ":", "&", "*", "params", "constraints", "type", "**", "lambda",
         "def", "tune:", "%params", "!!python/object"]
PIECES = st.lists(st.sampled_from([*WORDS, " ", "\n", "- ", "9" * 400, "(" * 300, "-" * 900]) | st.characters(), max_size=14).map("".join)


@FEW
@given(PIECES | st.text(max_size=40))
def test_any_text_is_read_or_refused(tmp_path: Path, text: str) -> None:
    "Nothing that a person may write gives anything but a space, or an error that says where."
    (tmp_path / "space.yaml").write_text(text, encoding="utf-8", errors="replace")
    readers = [lambda: read_domain(text, "here"), lambda: Expression(text, "here"), lambda: parse_options([text, f"x={text}"]),
               lambda: read_space(tmp_path / "space.yaml"),
               lambda: Space((Dimension("x", Domain("int", 1, 3), None, "here"),), (Constraint(text, "here"),))]
    for source in (text, f"x = 1  # tune: {text}", f"# tune: constraint {text}"):
        cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
        readers.append(lambda cell=cell: space_of(nbformat.v4.new_notebook(cells=[cell]), "here"))
    for read in readers:
        try:
            read()
        except UsageError as e:
            assert any(place in str(e) for place in ("here", "-s", "space.yaml", "cell", "%params")), str(e)


@pytest.mark.parametrize("text", [
    '__import__("os").getcwd()', "x.__class__.__mro__", "x.real", "print(1)", "(lambda: 1)()", "[y for y in [1]]", "x if x else 1", "(y := 3)",
    "x[0]", "f'{x}'", "{**x}", "...", "b'x' == x", "x @ x", "x << 9999999999", "~x", "*x,", "await x", "yield"])
def test_expressions_never_run_anything(text: str) -> None:
    "Calls, attributes, comprehensions and the rest are refused before a value is known."
    with pytest.raises(UsageError, match=r"space\.yaml:3"):
        Expression(text, "space.yaml:3")


@pytest.mark.parametrize("text", [
    "9**9**9**9", "x ** 99999999 > 1", '"a" * 999999999 == x', "[1] * 999999999 == x", "2.0 ** 99999", "(-8) ** 0.5 > 0", "1 / (x - 3)", "x < 'a'",
    "'%99999999d' % x", "10**400 * 1.0 > x", "0.0 ** -1"])
def test_expressions_cannot_grow_or_crash(text: str) -> None:
    "What would take all memory, or has no value, is an error that names the place."
    with pytest.raises(UsageError, match=r"space\.yaml:3"):
        Expression(text, "space.yaml:3").holds({"x": 3})


@FEW
@given(st.integers(-3, 3), st.integers(-3, 3), st.sampled_from(OPERATORS), st.sampled_from(OPERATORS), st.sampled_from(["and", "or"]), st.booleans())
def test_amounts_agree_with_truth(x: int, y: int, first: str, second: str, both: str, negated: bool) -> None:
    "What Optuna is told has the sign of what Python says, equality and strict comparisons included."
    text = f"{'not ' * negated}(x {first} y {both} x + y {second} 1)"
    expression = Expression(text, "")
    truth = bool(eval(text, {"x": x, "y": y}))
    assert expression.holds({"x": x, "y": y}) is truth and (expression.amount({"x": x, "y": y}) <= 0) is truth


def test_layers_override_each_other(tmp_path: Path) -> None:
    "The command line overrides the file, the file the notebook; a condition may be added over what stands behind; all of it fits a worker's pickle."
    source = 'depth: int = 3  # tune: int(2, 12)\nmodel = "rf"  # tune: {rf, hgb}\nlr = 0.1'
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})])
    (tmp_path / "space.yaml").write_text("params:\n  lr: uniform(0, 1, step=0.5)\n  model: {rf, hgb, knn}\nconstraints:\n- depth < 12\n")
    file = read_space(tmp_path / "space.yaml", within=space_of(nb, "train.ipynb"))
    space = parse_options(['depth=int(2, 4) when model == "rf"'], within=file)
    check_against(space, infer(nb))
    assert space.names == ("model", "depth", "lr") and space.grid_size() == 3 * (3 + 1 + 1)
    assert [each.where.replace(f"{tmp_path}/", "") for each in space.dimensions] == ["space.yaml:3", "-s depth=…", "space.yaml:2"]
    for each in pickle.loads(pickle.dumps(space)), Space.from_json(space.json()):
        assert list(each.grid()) == list(space.grid()) and each == space
    assert "depth" in space._repr_html_() and 'model == "rf"' in repr(space)


@pytest.mark.parametrize(("text", "said"), [
    ("lr: uniform(1, 0)", "space.yaml:1: lr: uniform(1, 0): low is 1, above high"),
    ("a: {x, y}\n\nb: int(2, 4) when c > 1\nc: int(1, 2)", "space.yaml:3: b: when: 'c > 1': c is not before it"),
    ("a: [1, 2]\nb:\n  type: int\n  low: 1\n  high: 4\n  wen: a > 1", "space.yaml:6: b: there is no wen. Did you mean when?"),
    ("a: [1, 2]\nb: {x, y} when a > 1", "space.yaml:2: "),
    ("a: [1, 2]\n'1b': [1, 2]", "space.yaml:2: '1b' is no name"),
    ("a: [1, [2]]", "space.yaml:1: a: "),
    ("params: {a: [1, 2]}\nb: [1, 2]", "space.yaml:2: b stands beside params"),
    ("a: [1, 2]\nconstraints: int(1, 2)", "space.yaml:2: constraint"),
    ("a: [1, 2]\nconstraints:\n- 1 > 0", "space.yaml:3: constraint: '1 > 0': it is about no dimension"),
    ("a: [1, 2]\nconstraints:\n- b > 1", "space.yaml:3: constraint: 'b > 1': there is no dimension b"),
    ("a: {type: float, low: 0, high: 1, log: true}", "space.yaml:1: a: {type: float, low: 0, high: 1, log: true}: low is 0"),
    ("", "names no parameters"),
    ("- a", "names no parameters"),
])
def test_files_are_refused_with_their_line(text: str, said: str) -> None:
    "The line of the file, what stands there, and what to write."
    Path("space.yaml").write_text(text)
    with pytest.raises(UsageError) as e:
        read_space("space.yaml")
    assert said in str(e.value) and str(e.value).startswith("space.yaml")
