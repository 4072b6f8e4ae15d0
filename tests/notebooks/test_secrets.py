"A secret reaches the kernel and is found nowhere: not in the store's bytes, not in the executed notebook, not in a log."
from __future__ import annotations

import base64
import json
import os
import subprocess
import sys

import pytest

from mlcycle.errors import NotebookRunError, UsageError
from mlcycle.notebooks.execute.runner import run_notebook
from mlcycle.store import facts, runs

TOKEN = "tok/4f9a2b+d07\"e1&13"

CELLS = (
    {"source": "api_key = ''", "tags": ["parameters"]},
    f"assert len(api_key) == {len(TOKEN)}\nprint('key', api_key)\nprint(repr({{'key': api_key}}))\napi_key",
    "import base64, html, json, sys, urllib.parse\nprint(base64.b64encode(('user:' + api_key).encode()).decode())\n"
    "print(json.dumps(api_key), html.escape(api_key), urllib.parse.quote(api_key, safe=''))\n"
    "sys.stdout.write(api_key[:9]); sys.stdout.flush(); sys.stdout.write(api_key[9:]); print()",
    "from IPython.display import HTML, display\nimport html\ndisplay(HTML(f'<b>{html.escape(api_key)}</b>'), metadata={'note': api_key})",
    "import os\nos.write(2, f'raw {api_key}\\n'.encode())\nos.system('echo $MLC_TEST_TOKEN') and None",
    "import mlcycle as mlc\nmlc.log_params({'url': f'https://u:{api_key}@h', api_key: 1})\nmlc.set_tags({'t': api_key})\n"
    "mlc.log_text(f'key={api_key}', 'note.txt')\nmlc.log_text('x', api_key + '.txt')\nmlc.log_metric(api_key, 1.0)\n"
    "import pandas as pd\nmlc.log_input(pd.DataFrame({api_key: [1]}), name=api_key, source=f's3://u:{api_key}@h')\n"
    "with mlc.run(api_key, experiment=api_key):\n    pass\n"
    "open('leak.bin', 'wb').write(api_key.encode())\n"
    "try:\n    mlc.log_artifact('leak.bin')\nexcept mlc.MlcycleError as e:\n    print('refused:', e)",
    "raise ValueError(f'bad key {api_key}')",
)


@pytest.fixture
def token(monkeypatch):
    "The secret, in the environment of this process."
    monkeypatch.setenv("MLC_TEST_TOKEN", TOKEN)
    return TOKEN


def written_forms(value: str) -> list[bytes]:
    "The ways in which the token must not be found."
    escaped = json.dumps(value)[1:-1]
    encoded = base64.b64encode(value.encode()).decode()[:20]
    return [text.encode() for text in (value, escaped, json.dumps(escaped)[1:-1], encoded, value.split('"')[0])]


def test_secret_is_found_nowhere(project, token):
    "Printed, displayed, raised, logged, encoded: every file of the store and the executed notebook are searched, byte by byte."
    path = project.write(*CELLS)
    with pytest.raises(NotebookRunError) as caught:
        run_notebook(path, secrets={"api_key": "env:MLC_TEST_TOKEN"}, out=project.folder / "out.ipynb")
    result = caught.value.result
    assert result.cell == 7 and result.error.message == "bad key [redacted]" and token not in "".join(caught.value.__notes__)
    run = runs.get(project.store, result.run)
    params, tags = facts.params(project.store, run), facts.tags(project.store, run)
    assert params["url"] == "https://u:[redacted]@h" and "api_key" not in params and tags["t"] == "[redacted]"
    outputs = json.dumps(project.executed(result.run))
    assert "refused:" in outputs and '_os.environ[\\"MLC_TEST_TOKEN\\"]' in outputs
    assert project.artifact(result.run, "note.txt") == b"key=[redacted]"

    project.store.close()
    files = [f for f in project.folder.rglob("*") if f.is_file() and f.name != "leak.bin"]
    assert {"mlcycle.db", "out.ipynb"} <= {f.name for f in files} and len(files) > 5
    for file in files:
        content = file.read_bytes()
        assert not [form for form in written_forms(token) if form in content], file


def test_secret_is_in_no_log(project, token):
    "Papermill's log of the outputs, its output files and its own traceback are masked too; here the environment names the secret."
    project.write("import os, sys\nprint('key', os.environ['MLC_TEST_TOKEN'])\nprint('key ' + os.environ['MLC_TEST_TOKEN'], file=sys.stderr)",
                  "raise ValueError(os.environ['MLC_TEST_TOKEN'])")
    done = project.papermill("train.ipynb", "out.ipynb", "-k", "python3", "--log-output", "--stdout-file", "o.txt", "--stderr-file", "e.txt",
                             MLCYCLE_SECRETS="MLC_TEST_TOKEN")
    assert done.returncode == 1 and "key [redacted]" in done.stderr
    assert (project.folder / "o.txt").read_text() == (project.folder / "e.txt").read_text() == "key [redacted]\n"
    for text in (done.stdout, done.stderr, (project.folder / "out.ipynb").read_text()):
        assert not [form for form in written_forms(token) if form in text.encode()]


def test_notebook_that_holds_the_secret(project, token):
    "A secret that is typed into the notebook itself is masked in what is kept, and said; the notebook still runs as it is."
    path = project.write(f"key = {token!r}\nassert len(key) == {len(token)}", {"source": "api_key = ''", "tags": ["parameters"]})
    done = run_notebook(path, secrets=["api_key=env:MLC_TEST_TOKEN"])
    assert not [form for form in written_forms(token) if form in project.artifact(done.run, "notebook/source.ipynb")]
    assert project.executed(done.run)["cells"][0]["source"][0].startswith("key = '[redacted]")
    assert "holds a secret" in " ".join(facts.warnings(project.store, runs.get(project.store, done.run)))


def test_short_secret_is_refused(project, monkeypatch):
    "A value that occurs in ordinary text by chance cannot be protected, and that is said before anything runs."
    monkeypatch.setenv("MLC_TEST_PIN", "42")
    with pytest.raises(UsageError, match="too short"):
        run_notebook(project.write({"source": "pin = ''", "tags": ["parameters"]}), secrets={"pin": "env:MLC_TEST_PIN"})
    assert project.runs() == []


def test_value_on_the_command_line_is_not_repeated(project):
    "Who types the value itself gets an error that does not print it."
    with pytest.raises(UsageError) as caught:
        run_notebook(project.write({"source": "pin = ''", "tags": ["parameters"]}), secrets=[f"pin={TOKEN}"])
    assert TOKEN not in str(caught.value)


def test_import_of_the_runner_is_light(project):
    "`mlc.run_notebook` can be named without paying for Papermill."
    code = "import sys, mlcycle.notebooks.execute.runner\n" \
           "print(sorted({'papermill', 'nbformat', 'nbclient', 'pandas', 'IPython'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
