"What fits: the magics in a real terminal, tables in any width, labels in the boxes of a picture."
from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path
from typing import Any

import pexpect
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

import mlcycle as mlc
from mlcycle.display import Result, Table
from mlcycle.value_text import cut_middle
from mlcycle.store.connect import open_store
from mlcycle.tune.tuning import tune
from mlcycle.ui.tree import Face, invoke

LINES = [
    ("%load_ext mlcycle", r"In \[2\]"),
    ("import mlcycle as mlc", r"In \[3\]"),
    ("%params lr=0.1 model='hgb'", r"lr\s+float\s+0\.1"),
    ("%track start exploring -e churn -p lr", r"goes on over the cells below"),
    ("mlc.log_metric('auc', 0.9)", r"In \[6\]"),
    ("x = 1", r"In \[7\]"),
    ("x = 1", r"In \[8\]"),
    ("%track status", r"running"),
    ("%track stop", r"Session: hidden state.*2 times"),
    ("%mlcycle runs", r"exploring.*finished"),
    ("%mlcycle show exploring", r"auc\s+0\.9"),
    ("%mlcycle promot", r"Did you mean 'promote'"),
    ("%mlcycle run this", r"is not known"),
    ("%track start --help", r"Usage: %track start"),
    ("%params --help", r"Usage: %params"),
]


@pytest.fixture
def terminal(tmp_path: Path) -> pexpect.spawn:
    "IPython, without colours and without a user's settings."
    (tmp_path / ".mlcycle").mkdir()
    env = {**os.environ, "IPYTHONDIR": str(tmp_path / "ipython"), "TERM": "dumb", "COLUMNS": "140"}
    env.pop("JPY_SESSION_NAME", None)
    child = pexpect.spawn(sys.executable, ["-m", "IPython", "--simple-prompt", "--colors=NoColor", "--no-banner"], cwd=str(tmp_path), env=env,
                          encoding="utf-8", timeout=60, dimensions=(50, 140))
    child.expect_exact("In [1]: ")
    yield child
    child.close(force=True)


def test_every_magic_in_a_terminal(terminal: pexpect.spawn) -> None:
    "The same words, plain text: no HTML, no widget, no traceback."
    seen = ""
    for number, (line, says) in enumerate(LINES, 2):
        terminal.sendline(line)
        terminal.expect_exact(f"In [{number}]: ")
        seen += terminal.before
        assert re.search(says, terminal.before + terminal.after, re.DOTALL), (line, terminal.before)
    terminal.sendline("%%track cell -e churn --out best")
    terminal.sendline("mlc.log_metric('auc', 0.8)")
    terminal.sendline("")
    terminal.sendline("")
    terminal.expect(r"cell \(\w{8}\) of churn: finished[\s\S]*In \[")
    seen += terminal.before
    terminal.sendline("best.metrics")
    terminal.expect_exact("{'auc': 0.8}")
    assert "<div" not in seen and "Traceback" not in seen and "widget" not in seen


def test_results_fit_a_narrow_terminal(tmp_path: Path) -> None:
    "IPython in 70 columns: what a magic returns is drawn in them, not in the width that it has in a notebook."
    env = {**os.environ, "IPYTHONDIR": str(tmp_path / "ipython"), "TERM": "dumb", "COLUMNS": "70"}
    with open_store(tmp_path / ".mlcycle" / "mlcycle.db"):
        pass
    with pexpect.spawn(sys.executable, ["-m", "IPython", "--simple-prompt", "--colors=NoColor", "--no-banner"], cwd=str(tmp_path), env=env,
                       encoding="utf-8", timeout=60, dimensions=(50, 70)) as child:
        child.expect_exact("In [1]: ")
        for number, line in enumerate(("%load_ext mlcycle", "import mlcycle as mlc",
                                       "run = mlc.run('wide', params={'p' * 9 + str(i): 'x' * 9 for i in range(9)})",
                                       "with run: mlc.log_metrics({'m' * 9 + str(i): i / 7 for i in range(9)})", "%mlcycle runs"), 2):
            child.sendline(line)
            child.expect_exact(f"In [{number}]: ")
        lines = child.before.splitlines()
    assert any("wide" in line for line in lines) and max(map(len, lines)) <= 70, child.before


def test_the_keys_in_a_terminal(tmp_path: Path) -> None:
    "A cell says the state of a key in one word, in each face."
    with open_store(tmp_path / "mlcycle.db"):
        mlc.connect(tmp_path / "mlcycle.db")
        for name in ("dashboard", "nightly"):
            invoke(["key", "create", name], Face())
        invoke(["key", "revoke", "nightly"], Face())
        keys = invoke(["key", "list"], Face())
        rows = {line.split()[0]: line.split()[2] for line in in_columns(keys, 120).splitlines() if line.split()[:1] in (["dashboard"], ["nightly"])}
        assert rows == {"dashboard": "valid", "nightly": "revoked"}
        assert "<td class=' good'>valid</td>" in keys._repr_html_() and "<td class=' dim'>revoked</td>" in keys._repr_html_()


def in_columns(result: Result, width: int) -> str:
    out = io.StringIO()
    result.print(Console(file=out, width=width, force_jupyter=False))
    return out.getvalue()


def test_runs_in_80_columns(tmp_path: Path) -> None:
    "Autologged runs have dozens of params: the name, the status, the age and the number that counts are there, whole, and the rest is on request."
    with open_store(tmp_path / "mlcycle.db"):
        mlc.connect(tmp_path / "mlcycle.db")
        for i in range(3):
            with mlc.run(f"a-pipeline-with-a-forest-of-the-second-kind-{i}", capture=False,
                         params={f"columntransformer__param_{n}": "drop" for n in range(40)} | {"randomforestclassifier__max_depth": i + 2}) as run:
                run.log_metrics({"accuracy": 0.951648 + i / 1e5, "auc": 0.987654 + i / 1e6, "fit_seconds": 0.25})
        tune(lambda x: {"zeta": x * 0.123456, "alpha": 1.0}, {"x": [1, 2, 3]}, metric="zeta", sampler="grid", study="hill", progress=False)
        found = invoke(["runs", "kind == 'script'", "-o", "-metrics.auc"], Face())
        text = in_columns(found, 80)
        head, first = (line for line in text.splitlines() if "status" in line or "kind-2" in line)
        assert head.split()[:4] == ["name", "status", "started", "auc"] and "0.9877" in first and "finished" in first and " ago" in first
        assert "…" in first and max(map(len, text.splitlines())) <= 80 and re.search(r"\d+ columns more: --columns all", text)
        everything = in_columns(invoke(["runs", "kind == 'script'", "--columns", "all"], Face()), 80)
        assert max(map(len, everything.splitlines())) <= 80 and everything.count("drop") == 120 and "columns more" not in everything
        asked = in_columns(invoke(["runs", "--columns", "took,auc,metrics.accuracy"], Face()), 80)
        assert asked.split()[:4] == ["name", "took", "auc", "accuracy"]
        with pytest.raises(mlc.MlcycleError, match="column 'aucc'"):
            invoke(["runs", "--columns", "aucc"], Face())
        trials = in_columns(invoke(["runs", "tags.study == 'hill' and kind != 'study'"], Face()), 80)
        assert trials.split()[:4] == ["name", "status", "started", "zeta"]  # what the study optimizes
        html = found._repr_html_()
        assert "auc" in html and "columns more" in html and html.count("<th scope='col'") <= 16
        study = invoke(["runs", "kind == 'study'", "--json"], Face()).data[0]["id"]
        parts = in_columns(invoke(["show", study], Face()), 80)
        assert "hill-0" in parts and "zeta" in parts


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z", "M"]), max_size=40)


@given(st.lists(WORDS, min_size=1, max_size=12), st.lists(st.floats(allow_nan=False) | st.integers(-10**12, 10**12), min_size=12, max_size=12),
       WORDS, st.integers(40, 200))
def test_a_number_is_whole_or_not_there(heads: list[str], numbers: list[Any], name: str, width: int) -> None:
    "In each width: no line is longer, no number of a column that is shown is cut, and what is not shown is counted."
    table = Table(["name", *heads], [[name, *numbers[:len(heads)]]], ordered=True)
    lines = in_columns(Result(None, [table]), width).splitlines()
    numbers_shown = table.texts()[0][1:]
    assert all(cell_len(line.rstrip()) <= width for line in lines)
    more = re.search(r"(\d+) columns? more", lines[-1])
    shown = len(heads) - (int(more[1]) if more else 0)
    assert shown >= 1 and all(text in "\n".join(lines) for text in numbers_shown[:shown])


@given(WORDS, st.integers(1, 30))
def test_a_text_loses_its_middle(text: str, width: int) -> None:
    "It fits, keeps both ends, and what fits anyhow stays as it is."
    cut = cut_middle(text, width)
    assert cell_len(cut) <= width and (cut == text if cell_len(text) <= width else "…" in cut)
    before, _, after = cut.partition("…") if cut != text else (text, "", "")
    assert text.startswith(before) and text.endswith(after)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z", "M"]), min_size=1, max_size=60) | st.sampled_from(
    ["RandomForestClassifier", "W" * 60, "MMMM-wwww-@@@@-mmmm", "i" * 60, "模型的名字很长很长很长很长很长"]))
def test_a_label_stays_in_its_box(label: str) -> None:
    "A lineage is drawn before anybody knows the font: in the widest that is about, in bold, no label passes the edge of its box."
    import html

    import matplotlib
    from PIL import ImageFont

    from mlcycle.registry.lineage import Lineage, Node
    from mlcycle.registry.lineage_picture import BOX, svg, text_width

    drawn = svg(Lineage("run:1", (Node("run:1", "run", label, label),), ()))
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
    texts = re.findall(r"<text[^>]*x='(\d+)'[^>]*font-size='(\d+)'[^>]*>(.*?)</text>", drawn)
    assert texts
    for x, size, text in texts:
        shown = html.unescape(text)
        if all(letter.isascii() or letter == "…" for letter in shown):  # this font has no others
            assert int(x) + ImageFont.truetype(str(fonts), int(size)).getlength(shown) <= BOX, shown
        else:
            assert int(x) + text_width(shown, float(size)) <= BOX, shown
