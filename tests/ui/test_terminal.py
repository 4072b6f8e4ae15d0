"The magics in IPython's terminal: a real one, on a pseudo-terminal."
from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pexpect
import pytest

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
