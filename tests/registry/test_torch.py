"Networks of torch are stored as programs that hold nothing to unpickle or to evaluate; skipped where torch is not installed."
from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import mlcycle as mlc
from mlcycle.errors import MlcycleError, ModelError, UnsafeModelError

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'mlcycle[torch]'")

from mlcycle.registry.flavours.torch import TorchNetwork, flavour

X = pd.DataFrame(np.random.default_rng(0).random((20, 4)), columns=list("abcd"))


def networks() -> dict[str, Any]:
    "Networks of tables: layers, normalisation, a residual, attention over columns."
    class Residual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.out = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)

        def forward(self, rows: Any) -> Any:
            return self.out(rows + torch.nn.functional.gelu(self.second(torch.relu(self.first(rows)))) / rows.shape[1])

    layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(inplace=True), torch.nn.Dropout(0.1),
                                 torch.nn.LayerNorm(8), torch.nn.Linear(8, 3), torch.nn.Softmax(dim=1))
    attention = torch.nn.Sequential(torch.nn.Unflatten(1, (4, 1)), torch.nn.TransformerEncoderLayer(1, 1, 4, batch_first=True), torch.nn.Flatten())
    return {"layers": layers.eval(), "residual": Residual().eval(), "attention": attention.eval()}


def exported(network: Any) -> Any:
    rows = torch.tensor(X.to_numpy(np.float32))
    return torch.export.export(network, (rows,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


@pytest.fixture
def store(tmp_path: Path) -> Any:
    yield mlc.connect(tmp_path / "mlcycle.db")
    mlc.connect(None).close()


@pytest.mark.parametrize("name", ["layers", "residual", "attention"])
def test_a_program_answers_the_same_for_any_number_of_rows(name: str, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Logged, checked on its example, registered, asked as another person's model in a process of its own, and predicted with."
    torch.manual_seed(0)
    network = networks()[name]
    with mlc.run("net", "e", capture=False) as run:
        logged = run.log_model(exported(network), input_example=X)
    assert logged.manifest.flavour == "torch" and logged.manifest.verified == len(X[:20]) and "torch" in logged.manifest.libraries
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    mlc.register(run, "net")
    wanted = network(torch.tensor(X.to_numpy(np.float32))).detach().numpy()
    for rows in (1, 7, 20):
        answers = mlc.predict("net", X[:rows]).to_numpy()
        assert np.allclose(answers, wanted[:rows], atol=1e-5)
    assert isinstance(mlc.load_model("net"), TorchNetwork)


def test_a_network_that_is_no_program_is_told_how_to_become_one(store: Any) -> None:
    "The class of a network is code: nothing is pickled without the opt-in, and with it the module predicts tables as well."
    network = networks()["layers"]
    with mlc.run("net", "e", capture=False) as run:
        with pytest.raises(ModelError, match=r"torch\.export\.export\("):
            run.log_model(network, input_example=X)
        logged = run.log_model(network, input_example=X, allow_pickle=True)
    assert logged.manifest.flavour == "pickle" and logged.manifest.verified


def test_a_folder_of_code_with_safetensors(store: Any, tmp_path: Path) -> None:
    "The documented way for a network that cannot be exported: its module and its weights, apart, and the opt-in."
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    network = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Tanh())
    folder = tmp_path / "net"
    folder.mkdir()
    safetensors.save_file(network.state_dict(), folder / "weights.safetensors")
    (folder / "model.py").write_text("""
import torch
from safetensors.torch import load_file
class Net:
    def __init__(self, network): self.network = network
    def predict(self, table):
        with torch.no_grad():
            return self.network(torch.tensor(table.to_numpy(), dtype=torch.float32)).numpy()
def load(folder):
    network = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Tanh())
    network.load_state_dict(load_file(folder / 'weights.safetensors'))
    return Net(network)
""")
    with mlc.run("net", "e", capture=False) as run:
        logged = run.log_model(code_folder=folder, input_example=X)
    assert {"torch", "safetensors"} <= logged.manifest.libraries.keys()
    with pytest.raises(UnsafeModelError, match="allow_pickle=True"):
        mlc.load_model("net")
    assert mlc.load_model("net", allow_pickle=True).predict(X).shape == (20, 2)


def bent(tmp_path: Path, change: Any) -> Path:
    "A folder with a program whose parts were changed."
    facts_folder = tmp_path / "sound"
    facts_folder.mkdir()
    flavour.save(exported(networks()["residual"]), facts_folder)
    with zipfile.ZipFile(facts_folder / flavour.file) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    change(parts)
    target = tmp_path / "bent"
    target.mkdir()
    with zipfile.ZipFile(target / flavour.file, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return target


def in_json(file: str, change: Any) -> Any:
    "A change of one JSON document of the archive."
    def apply(parts: dict[str, bytes]) -> None:
        [name] = [name for name in parts if name.endswith(file)]
        document = json.loads(parts[name])
        change(document)
        parts[name] = json.dumps(document).encode()
    return apply


def nodes(model: Any) -> Any:
    return model["graph_module"]["graph"]["nodes"]


def sizes(model: Any) -> Any:
    return next(size for value in model["graph_module"]["graph"]["tensor_values"].values() for size in value["sizes"] if "as_expr" in size)


HARM = "__import__('pathlib').Path({path!r}).touch()"
BENT = {
    "expression": lambda harm: in_json("model.json", lambda model: sizes(model)["as_expr"].update(expr_str=harm)),
    "operator": lambda harm: in_json("model.json", lambda model: nodes(model)[0].update(target="torch.ops.aten.from_file.default")),
    "function": lambda harm: in_json("model.json", lambda model: nodes(model)[0].update(target="os.system")),
    "name": lambda harm: in_json("model.json", lambda model: nodes(model)[0]["outputs"][0]["as_tensor"].update(name=f"x; {harm}")),
    "object": lambda harm: in_json("model.json", lambda model: model["graph_module"]["graph"]["custom_obj_values"].update(x={"name": "x"})),
    "pickled weight": lambda harm: in_json("weights_config.json", lambda config: next(iter(config["config"].values())).update(use_pickle=True)),
    "far weight": lambda harm: in_json("weights_config.json", lambda config: next(iter(config["config"].values()))["tensor_meta"]
                                       .update(strides=[{"as_int": 1 << 30}, {"as_int": 1}])),
}


@pytest.mark.parametrize("name", BENT)
def test_nothing_in_a_bent_program_runs(name: str, tmp_path: Path) -> None:
    "Texts that torch evaluates, operators that read files, pickles, weights that are not there: refused before torch sees the archive."
    folder = bent(tmp_path, BENT[name](HARM.format(path=str(tmp_path / "harm"))))
    with pytest.raises(UnsafeModelError):
        flavour.load(folder, {})
    assert not (tmp_path / "harm").exists()


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def test_what_torch_would_unpickle_is_left_out(tmp_path: Path) -> None:
    "Sample inputs and guards are not needed to predict: the ones of the file are never read, though plain torch would run them."
    def harm(parts: dict[str, bytes]) -> None:
        root = next(iter(parts)).partition("/")[0]
        buffer = io.BytesIO()
        torch.save(Harm(tmp_path / "harm"), buffer)
        parts[f"{root}/data/sample_inputs/model.pt"] = buffer.getvalue()
        in_json("model.json", lambda model: model.update(guards_code=[HARM.format(path=str(tmp_path / "harm"))]))(parts)

    folder = bent(tmp_path, harm)
    assert len(flavour.load(folder, {}).predict(X)) == len(X)
    assert not (tmp_path / "harm").exists()
    (folder / flavour.file).write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    with pytest.raises(MlcycleError):
        flavour.load(folder, {})
    assert not (tmp_path / "harm").exists()
