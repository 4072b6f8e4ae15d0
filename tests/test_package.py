"The wheel and the sdist build, carry what they must, install into an empty environment and work; the import stays light."
from __future__ import annotations

import configparser
import email
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.tree import ROOT, copy_tree, environment

HEAVY = ("pandas", "sklearn", "optuna", "matplotlib", "IPython", "sqlalchemy", "numpy", "scipy", "papermill", "skops", "alembic", "fsspec", "rich",
         "pyarrow")


def settings() -> configparser.ConfigParser:
    "settings.ini, the one source of package metadata."
    found = configparser.ConfigParser(delimiters=["="], interpolation=None)
    found.optionxform = str
    found.read(ROOT / "settings.ini", encoding="utf-8")
    return found


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    "The wheel and the sdist, built from a copy of the tree with this environment's setuptools; the wheel is built from the sdist."
    folder = tmp_path_factory.mktemp("built")
    tree = copy_tree(folder / "tree")
    done = subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", tree], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def test_what_is_in_them(built: dict[str, Path]) -> None:
    "Every module is in both, migrations too, as real files; the sdist has the settings that its setup.py reads."
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mlcycle").rglob("*.py")}
    wheel = set(zipfile.ZipFile(built["wheel"]).namelist())
    with tarfile.open(built["sdist"]) as archive:
        sdist = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert modules <= wheel and modules <= sdist and "mlcycle/store/migrations/versions/r0001_initial.py" in wheel
    assert {"settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"} <= sdist
    assert not [name for name in wheel if name.split("/")[0] not in ("mlcycle",) and ".dist-info/" not in name]


def test_metadata_is_that_of_settings(built: dict[str, Path]) -> None:
    "Version, requirements, extras and entry points in the wheel are those of settings.ini."
    given, archive = settings(), zipfile.ZipFile(built["wheel"])
    info = next(name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name)
    meta = email.message_from_bytes(archive.read(f"{info}/METADATA"))
    own = lambda section: {key for key in given[section] if key not in given.defaults()}  # noqa: E731
    assert (meta["Name"], meta["Version"], meta["Requires-Python"]) == ("mlcycle", given["DEFAULT"]["version"], f">={given['DEFAULT']['min_python']}")
    required = {line.split(";")[0].strip() for line in meta.get_all("Requires-Dist") if "extra ==" not in line}
    assert required == {line.strip() for line in given["DEFAULT"]["requirements"].splitlines() if line.strip()}
    assert set(meta.get_all("Provides-Extra")) == own("extras") >= {"lab", "postgres", "s3", "dask", "onnx", "all", "dev"}
    points = configparser.ConfigParser(delimiters=["="], interpolation=None)
    points.optionxform = str
    points.read_string(archive.read(f"{info}/entry_points.txt").decode())
    wanted = {section.removeprefix("entry_points."): {key: given[section][key] for key in own(section)}
              for section in given.sections() if section.startswith(("entry_points.", "console_"))}
    assert {s: dict(points[s]) for s in points.sections()} == wanted


_WORKS = """
import importlib.metadata, sys
import mlcycle as mlc
for point in importlib.metadata.distribution("mlcycle").entry_points:
    point.load()
with mlc.run("baseline", experiment="installed") as run:
    run.log_metric("auc", 0.9)
    run.log_text("hello", "note.txt")
print(mlc.__file__, mlc.__version__, mlc.runs()["metrics.auc"].tolist(), mlc.run is not None)
"""


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_installs_into_an_empty_environment(built: dict[str, Path], tmp_path: Path, kind: str) -> None:
    "Installed by pip into an empty environment, the package, its entry points and its command work. What it requires is lent by this environment."
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    site = next((venv / "lib").glob("python*/site-packages"))
    (site / "lent.pth").write_text("\n".join(dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])) + "\n")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    install = [sys.executable, "-m", "pip", "--python", venv / "bin" / "python", "install", "--no-deps", "--no-index", "--no-build-isolation",
               "--ignore-installed", "--disable-pip-version-check", built[kind]]
    done = subprocess.run(install, capture_output=True, text=True, env=clean, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr

    def go(*words: str | Path) -> str:
        found = subprocess.run(words, capture_output=True, text=True, env=clean, cwd=tmp_path)
        assert found.returncode == 0, found.stdout + found.stderr
        return found.stdout

    version = settings()["DEFAULT"]["version"]
    assert go(venv / "bin" / "python", "-c", _WORKS).split() == [str(site / "mlcycle" / "__init__.py"), version, "[0.9]", "True"]
    assert version in go(venv / "bin" / "mlcycle", "--version") and "installed" in go(venv / "bin" / "mlcycle", "runs", "--json")


_COMMAND = "import sys; sys.argv = ['mlcycle', '--version']\nfrom mlcycle.ui.cli import main\ntry: main()\nexcept SystemExit: pass"


_PACKAGES = "; ".join(f"import mlcycle.{path.parent.relative_to(ROOT / 'mlcycle').as_posix().replace('/', '.')}"
                      for path in sorted((ROOT / "mlcycle").rglob("*/__init__.py")))


@pytest.mark.parametrize("code", ["import mlcycle", "import mlcycle; mlcycle.__version__, dir(mlcycle)", _COMMAND, _PACKAGES],
                         ids=["import", "version", "command", "packages"])
def test_import_is_light(code: str) -> None:
    "A fresh interpreter that imports mlcycle and all its packages, or answers --version, loads nothing heavy until it is used."
    code += f"\nimport sys; print(sorted(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(ROOT))
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
