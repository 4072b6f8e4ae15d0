"Text that another person wrote (names, tags, reasons, errors, outputs) steers no terminal: every command, on a pseudo-terminal and in a pipe."
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import unicodedata
from contextlib import suppress
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pexpect
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

import mlcycle as mlc
from mlcycle.display import Facts, Result, Table, Text
from mlcycle.errors import MlcycleError
from mlcycle.store import facts, runs
from mlcycle.terminal import hanging, json_escaped, one_line, printable, program_output
from mlcycle.ui.tree import COMMANDS, Face, invoke

CODES = "\x1b[31;5mRED\x1b]0;TITLE\x07\x1b]8;;http://evil/\x07LINK\x1b]52;c;cHduZWQ=\x07\x9b31m\u202eRTL\u202c\u2028\r\n{} LINE\x08\x08\x1b[2J"
NAME, OUTPUT = CODES.format("NAME"), CODES.format("OUTPUT")  # outputs and tracebacks have lines of their own, names have not
SCRIPT = """
import json, sys
from mlcycle.ui.cli import main
for words in json.load(open(sys.argv[1])):
    print("==", ascii(words), flush=True)
    try:
        main(words)
    except SystemExit:
        pass
print("== end", flush=True)
"""


def obeyed(text: str) -> set[str]:
    "Characters that a terminal or a reader obeys instead of showing them."
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)  # colours, which mlcycle uses itself
    text = re.sub(r"\x1b\[(?:\?25[lh]|\d*[AK])", "", text)  # how a bar of progress is drawn again
    kinds = ("Cc", "Cf", "Cs", "Zl", "Zp")
    visible = "\n\t\r\u200c\u200d\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"  # joiners, and signs that embrace numbers
    return {ascii(c) for c in text if unicodedata.category(c) in kinds and c not in visible and not "\u0600" <= c <= "\u0605"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A store in which every text is hostile."
    folder = tmp_path_factory.mktemp("hostile")
    (folder / ".mlcycle").mkdir()
    store = mlc.connect(folder / ".mlcycle" / "mlcycle.db")
    rows = np.arange(8.0).reshape(4, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLCYCLE_ACTOR", "actor" + NAME)
        for attempt in range(2):
            try:
                with mlc.run("run" + NAME, "experiment" + NAME, {"p" + NAME: "v" + NAME}, {"t" + NAME: "v" + NAME}, capture=False) as run:
                    run.log_metric("m" + NAME, attempt)
                    run.warn("warning" + NAME)
                    run.log_text("text", "notes.txt")
                    run.log_input(np.arange(3), "data" + NAME, source="source" + NAME)
                    run.log_model(LogisticRegression().fit(rows, [0, 0, 1, 1]), input_example=rows)
                    raise RuntimeError("error" + OUTPUT)
            except RuntimeError:
                pass
        version = mlc.register(run.id, "model")
        mlc.promote(version.ref, why="why" + NAME)
        for name in ("model\u202e", "model\x9b31m"):
            with suppress(MlcycleError):  # it may be refused
                mlc.register(run.id, name)
    (folder / "run.id").write_text(run.id, encoding="utf-8")
    cells = [nbformat.v4.new_code_cell("a = 1", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(f"print({OUTPUT!r})"),
             nbformat.v4.new_code_cell(f"raise ValueError({OUTPUT!r})")]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    nbformat.write(notebook, folder / "n.ipynb")
    store.close()
    mlc.connect(None)
    return folder


def commands(project: Path) -> list[list[str]]:
    "Each command with something to show, or with a hostile word to complain about."
    run = (project / "run.id").read_text(encoding="utf-8")
    return [["run", "n.ipynb", "--name", "nb" + NAME, "--fresh"], ["note", run, "note" + NAME], ["note", "model/1", "# n" + NAME],
            ["note", run, "--json"], ["tag", run, f"t{NAME}=v{NAME}"], ["tag", run, NAME], ["show", "model/1"],
            ["runs"], ["runs", "name == 'none" + NAME + "'"],
            ["runs", "--json"], ["show", run], ["show", run, "--json"], ["show", "model"], ["show", NAME], ["studies"],
            ["watch", run], ["watch", "nb"], ["logs", "nb"],
            ["logs", "nb", "--json"], ["stop", run], ["lineage", "model/1"], ["lineage", run], ["compare", run, "nb"], ["debug", NAME],
            ["rerun", NAME], ["reproduce", run, "--check"],
            ["artifacts", run], ["artifacts", "nb"], ["delete", run], ["register", run, "model" + NAME], ["register", run, "model"],
            ["promote", "model/9" + NAME], ["promote", "model/2", "--why", "why" + NAME], ["rollback", "model@champion"], ["models"],
            ["models", "--json"], ["predict", "model", "in" + NAME + ".csv", "-o", "out.csv"], ["predict", "model", "in.csv", "-o", "o" + NAME],
            ["autolog", NAME], ["events"], ["events", "--json"], ["events", "model"], ["fsck"], ["gc"], ["completion", NAME],
            ["warm"], ["warm", "--json"], ["map", NAME, NAME], ["key", "create", "key" + NAME], ["key", "list"], ["key", "revoke", NAME],
            ["compile", "model" + NAME], ["serve", "model" + NAME],
            ["tune", "n.ipynb", "-s", NAME], ["params", "n.ipynb"], ["params", NAME], ["demo", "-d", "n.ipynb"], [NAME], ["--" + NAME]]


def answers(text: str) -> dict[str, str]:
    "Command to what it printed."
    parts = re.split(r"(?m)^== (.*)$", text)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def check(output: bytes, project: Path) -> None:
    by_command = answers(output.decode("utf-8").replace("\r\r\n", "\n").replace("\r\n", "\n"))
    assert "end" in by_command and len(by_command) == len(commands(project)) + 1
    steering = {command: codes for command, text in by_command.items() if (codes := obeyed(text))}
    assert steering == {}
    pretending = [command for command, text in by_command.items() if re.search(r"(?m)^(?:\r|\x1b\[[0-9;]*m)*NAME LINE", text)]
    assert pretending == []
    shown = "".join(by_command.values())
    assert "\\x1b]0;TITLE" in shown and "\\u202eRTL" in shown, "what a name holds is shown"


def test_every_command_is_driven(project: Path) -> None:
    "A new command is added to the list above."
    assert sorted(set(COMMANDS) - {words[0] for words in commands(project)}) == []


@pytest.mark.parametrize("where", ["terminal", "pipe"])
def test_no_text_of_others_steers_a_terminal(project: Path, where: str) -> None:
    "Standard output and standard error of every command, with text that would set the title, write to the clipboard, clear and pretend."
    (project / "words.json").write_text(json.dumps(commands(project)), encoding="utf-8")
    (project / "in.csv").write_text("a\n1\n", encoding="utf-8")
    command = [sys.executable, "-c", SCRIPT, "words.json"]
    env = {**os.environ, "MLCYCLE_ACTOR": "actor" + NAME, "TERM": "xterm-256color", "COLUMNS": "200", "LINES": "50"}
    if where == "pipe":
        done = subprocess.run(command, cwd=project, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=300)
        return check(done.stdout, project)
    child = pexpect.spawn(command[0], command[1:], cwd=str(project), env=env, timeout=300, dimensions=(50, 200))
    output = b""
    while (index := child.expect([r"for good\? \[y/N\]: ", pexpect.EOF])) == 0:
        output += child.before
        child.sendline("n")
    check(output + child.before, project)
    assert index == 1


texts = st.text(st.characters(codec=None), max_size=40)


@given(texts)
def test_any_text_is_safe_on_every_face(text: str) -> None:
    "Whatever Unicode holds now: the parts of a result, its JSON, which reads back as the same, and an error."
    result = Result({text: [text]}, [Text(text), Text(text, block=True), Facts({text: text}, text), Table((text, "n"), [(text, 1.5)], text)])
    for shown in (repr(result), result.body(), one_line(text), hanging(text), printable(text), program_output(text, False), result.json()):
        assert obeyed(shown) == set(), shown
        shown.encode()
    assert json.loads(json_escaped(result.json())) == {text: [text]}
    assert "\n" not in one_line(text) and not re.search(r"\n\S", hanging(text))


HALF = "half \ud800"


def test_half_of_a_surrogate_pair_is_refused_or_shown_as_its_escape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "UTF-8 has no half of a surrogate pair: no verb, no face of a result, no state of a widget and no command fails on one in a raw error."
    monkeypatch.chdir(tmp_path)
    store = mlc.connect(tmp_path / ".mlcycle" / "mlcycle.db")
    table = pd.DataFrame({"a": [0.0, 1.0]}).set_axis(pd.Index([HALF], dtype=object), axis=1)
    refused = []
    for name in ("one", "two"):
        with suppress(ValueError), mlc.run(name, "e", {"p": HALF, "listed": [HALF], "keyed": {HALF: HALF}}, capture=False) as run:
            for write in (lambda: run.log_text(HALF, "a.txt"), lambda: run.log_text("a", HALF), lambda: run.set_tags({"t": HALF}),
                          lambda: run.log_metric(HALF, 1), lambda: run.log_table(table, "t"), lambda: run.log_table(table, "t.csv"),
                          lambda: run.log_model(LogisticRegression().fit(table, [0, 1]), input_example=table), lambda: run.set_tags({HALF: 1})):
                with pytest.raises(MlcycleError) as error:
                    write()
                refused.append(str(error.value))
            run.warn(HALF)
            run.log_input(table, "columns")
            raise ValueError(HALF)
    assert facts.params(store, runs.resolve(store, "one")) == {"p": HALF, "listed": [HALF], "keyed": {HALF: HALF}}
    faces = [repr(run), run._repr_html_(), repr(runs.resolve(store, "one")), *refused]
    for view in (mlc.RunsTable(), mlc.Compare("one", "two"), mlc.LiveRun("one"), mlc.RunView("one")):
        widget = view.widget()
        faces += [repr(view), *view._repr_mimebundle_().values(), json.dumps(widget.get_state(), default=str, ensure_ascii=False)]
    for words in (["show", "one"], ["show", "one", "--json"], ["runs"], ["runs", "--json"], ["compare", "one", "two"], ["events"]):
        result = invoke(words, Face())
        faces += [repr(result), result.body(), result.json()]
    for words in (["show", HALF], ["params", HALF], ["map", HALF], ["tune", "n.ipynb", "-s", HALF], [HALF]):
        with pytest.raises(MlcycleError) as error:
            invoke(words, Face())
        faces.append(str(error.value))
    assert [face for face in map(str, faces) if "\ud800" in face] == []
    assert all("half \\ud800" in str(face) for face in faces[:2])
    store.close()
    mlc.connect(None)
