"The Open Inference Protocol, asked by Triton's own client over the network, and with requests that no client would send."
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlcycle.registry.predict import predict
from tests.serve.protocol_models import PIXELS, LocalApp, people_table, real_server, served_model

tritonclient = pytest.importorskip("tritonclient.http")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any, Any]]:
    with real_server(tmp_path_factory.mktemp("v2"), "people", "pixels") as (server, store):
        client = tritonclient.InferenceServerClient(server.url.removeprefix("http://"), network_timeout=120)
        yield server, store, client
        client.close()


def tensors(table: Any, binary: bool) -> list[Any]:
    "The columns of a table as inputs."
    made = []
    for name, datatype in (("age", "INT64"), ("income", "FP64"), ("city", "BYTES"), ("member", "BOOL"), ("zip", "BYTES")):
        values = table[name].to_numpy(dtype=object if datatype == "BYTES" else None)
        made.append(tritonclient.InferInput(name, [len(table), 1], datatype))
        made[-1].set_data_from_numpy(values.reshape(-1, 1), binary_data=binary)
    return made


def test_metadata_and_health(served: tuple[Any, Any, Any]) -> None:
    "The client finds what the specification names, and false for what is not served."
    _, _, client = served
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("people") and client.is_model_ready("people", "1")
    assert not client.is_model_ready("people", "2") and not client.is_model_ready("nobody")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = client.get_model_metadata("people")
    assert metadata["versions"] == ["1"] and metadata["platform"]
    assert {tensor["name"]: tensor["datatype"] for tensor in metadata["inputs"]} == {
        "age": "INT64", "income": "FP64", "city": "BYTES", "member": "BOOL", "zip": "BYTES"}
    assert metadata["outputs"][0] == {"name": "prediction", "datatype": "BYTES", "shape": [-1]}
    assert client.get_model_metadata("pixels")["inputs"] == [{"name": "input", "datatype": "FP64", "shape": [-1, 4]}]


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_answers_are_those_of_predict(served: tuple[Any, Any, Any], binary: bool, compression: str | None) -> None:
    "In JSON and as bytes, packed or not, the client gets what `mlc.predict` gives."
    _, store, client = served
    table = people_table(50)
    wanted = predict("people", table, store=store)
    asked = [tritonclient.InferRequestedOutput(name, binary_data=binary) for name in ("probability_yes", "prediction")]
    result = client.infer("people", tensors(table, binary), outputs=asked, request_id="42", request_compression_algorithm=compression)
    response = result.get_response()
    assert [output["name"] for output in response["outputs"]] == ["probability_yes", "prediction"] and response["id"] == "42"
    assert response["model_name"] == "people" and response["model_version"] == "1"
    np.testing.assert_allclose(result.as_numpy("probability_yes"), wanted["probability_yes"], rtol=1e-6)  # the compiled form rounds otherwise
    labels = [label.decode() if isinstance(label, bytes) else label for label in result.as_numpy("prediction").tolist()]
    assert labels == wanted["prediction"].tolist()


def test_all_outputs_and_an_array(served: tuple[Any, Any, Any]) -> None:
    "Without a wish all outputs come, as bytes; a model of an array has one input."
    _, store, client = served
    pixels = np.random.default_rng(1).normal(size=(20, 4))
    for binary in (True, False):
        sent = tritonclient.InferInput("input", [20, 4], "FP64")
        sent.set_data_from_numpy(pixels, binary_data=binary)
        result = client.infer("pixels", [sent], model_version="1")
        wanted = predict("pixels", pixels, store=store)
        assert result.as_numpy("prediction").dtype == bool and {output["name"] for output in result.get_response()["outputs"]} == set(wanted)
        for name in wanted:
            np.testing.assert_allclose(result.as_numpy(name), wanted[name], rtol=1e-6)


def test_refusals_reach_the_client(served: tuple[Any, Any, Any]) -> None:
    "The client raises its own error with our text and status."
    _, _, client = served
    good, unknown = tensors(people_table(3), True), tensors(people_table(3).assign(city="Rom"), True)
    for model, inputs, status, text in (("people", good[1:], "400", "age"), ("nobody", good, "404", "nobody"), ("people", unknown, "400", "'Rom'")):
        with pytest.raises(tritonclient.InferenceServerException, match=text) as refused:
            client.infer(model, inputs)
        assert refused.value.status() == status


AGE = {"name": "age", "datatype": "INT64", "shape": [2], "data": [30, 31]}
INCOME = {"name": "income", "datatype": "FP64", "shape": [2, 1], "data": [[1.5], [None]]}
CITY = {"name": "city", "datatype": "BYTES", "shape": [2], "data": ["Ulm", "Köln"]}
MEMBER = {"name": "member", "datatype": "BOOL", "shape": [2], "data": [True, False]}
NOTE = {"name": "note", "datatype": "BYTES", "shape": [2], "data": ["x", None]}
ALL = [AGE, INCOME, CITY, MEMBER, NOTE]
LONG = {"parameters": {"binary_data_size": 16}}


def changed(**changes: Any) -> dict[str, Any]:
    "A request with another `age`."
    tensor = {**AGE, **changes}
    return {"inputs": [{key: value for key, value in tensor.items() if value is not ...}, *ALL[1:]]}


BAD: list[tuple[Any, str]] = [
    (changed(datatype="INT32"), "INT64"), (changed(datatype="FP64"), "INT64"), (changed(datatype="NONSENSE"), "INT64"),
    (changed(shape=[3]), "3"), (changed(shape=[2, 2]), "[n]"), (changed(shape=[]), "[n]"), (changed(shape=[-2]), "[n]"),
    (changed(shape=[0], data=[]), "no rows"), (changed(shape="2"), "inference request"),
    (changed(data=[30, 31.5]), "31.5"), (changed(data=[30, "31"]), "'31'"), (changed(data=[30, None]), "null"),
    (changed(data=[30, 2**63]), str(2**63)),
    (changed(data=[[30], [31, 32]]), "age"), (changed(data=[[30, 31]]), "age"), (changed(data={}), "list"), (changed(data=...), "either"),
    (changed(**LONG), "either"), (changed(data=..., **LONG), "after the body"), (changed(data=..., parameters={"binary_data_size": "16"}), "bytes"),
    (changed(data=..., parameters={"shared_memory_region": "r"}), "shared memory"), (changed(name="year"), "year"), (changed(name="income"), "FP64"),
    ({"inputs": [*ALL, NOTE]}, "twice"),
    ({"inputs": ALL[:-1]}, "note"), ({"inputs": []}, "age"), ({}, "inputs"), ([], "inference request"),
    ({"inputs": ALL, "outputs": [{"name": "nothing"}]}, "nothing"), ({"inputs": ALL, "outputs": "prediction"}, "inference request"),
    ({"inputs": ALL, "id": 7}, "inference request"), ({"inputs": [AGE | {"shape": [1], "data": [30]}, *ALL[1:]]}, "rows"),
    ({"inputs": [*ALL[:2], CITY | {"data": ["Ulm", "Rom"]}, *ALL[3:]]}, "'Rom'"), ({"inputs": [*ALL[:3], MEMBER | {"data": [True, 2]}, NOTE]}, "2"),
]


def test_requests_that_do_not_fit(tmp_path: Path) -> None:
    "Each is refused with status 400 and `{\"error\": …}` that names what is wrong; one that fits is answered."
    app = LocalApp(tmp_path, served_model(tmp_path))
    status, _, body = app.ask("POST", "/v2/models/people/infer", json.dumps({"inputs": ALL, "id": "7"}).encode())
    assert status == 200 and json.loads(body)["outputs"][0]["data"] == ["no", "yes"] and json.loads(body)["id"] == "7"
    for request, text in BAD:
        status, headers, body = app.ask("POST", "/v2/models/people/versions/3/infer", json.dumps(request).encode())
        answer = json.loads(body)
        assert status == 400 and set(answer) == {"error"} and text in answer["error"], (request, answer)
        assert headers["content-type"] == "application/json"
    for body in (b"", b"{", b"\xff", b"[" * 100_000, b'{"inputs": [], "inputs": []}', b'{"inputs": [{"name": "age", "name": "age"}]}'):
        status, _, answer = app.ask("POST", "/v2/models/people/infer", body)
        assert status == 400 and set(json.loads(answer)) == {"error"}, body


def test_other_refusals_have_the_form_of_the_protocol(tmp_path: Path) -> None:
    "Addresses that are not there, methods, types, limits, a model that fails and a server that is not ready."
    app = LocalApp(tmp_path, served_model(tmp_path), body_limit=10_000)
    good = json.dumps({"inputs": ALL}).encode()
    failing = json.dumps(changed(data=[99, 99])).encode()
    cases = [("GET", "/v2/models/nobody", b"", 404), ("POST", "/v2/models/nobody/infer", good, 404),
             ("GET", "/v2/models/people/versions/9", b"", 404),
             ("GET", "/v2/models/people/infer", b"", 405), ("POST", "/v2/models/people/infer", b" " * 20_000, 413),
             ("POST", "/v2/models/people/infer", failing, 500)]
    for method, path, body, wanted in cases:
        status, _, answer = app.ask(method, path, body)
        assert status == wanted and set(json.loads(answer)) == {"error"} and "count to 99" not in answer.decode(), (path, answer)
    assert app.ask("POST", "/v2/models/people/infer", good, content_type="text/csv")[0] == 415
    assert json.loads(app.ask("GET", "/nowhere")[2])["status"] == 404  # another protocol's refusals stay as they are
    app.readiness.missing = "The server is stopping."
    for path in ("/v2/health/ready", "/v2/models/people/ready", "/v2/models/people/versions/3/ready"):
        status, _, answer = app.ask("GET", path)
        assert status == 400 and json.loads(answer)["ready"] is False
    assert app.ask("GET", "/v2/health/live")[0] == 200


def test_binary_sizes(tmp_path: Path) -> None:
    "Sizes that disagree with a shape, with each other or with the body are refused before anything is read."
    def add(data: np.ndarray) -> dict[str, np.ndarray]:
        return {"prediction": data.reshape(len(data), -1).sum(axis=1).astype("float64")}

    app = LocalApp(tmp_path, served_model(tmp_path, PIXELS, add, "pixels"))
    values = np.arange(8, dtype="<f4")

    def infer(size: Any = 32, shape: Any = (2, 2, 2), body: bytes = values.tobytes(), datatype: str = "FP32", length: Any = None) -> tuple[int, Any]:
        text = json.dumps({"inputs": [{"name": "input", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}]}).encode()
        status, _, answer = app.ask("POST", "/v2/models/pixels/infer", text + body, inference_header_content_length=str(length or len(text)))
        return status, json.loads(answer)

    status, answer = infer()
    assert status == 200 and answer["outputs"][0]["data"] == [6.0, 22.0]
    bad = [{"size": 31}, {"size": 33}, {"size": 10**20}, {"size": -1}, {"size": True}, {"shape": ()}, {"shape": (1, 2, 2)},
           {"shape": (4, 2, 1)}, {"shape": (2, 4)},
           {"body": b""}, {"body": values.tobytes() + b"x"}, {"datatype": "FP64"}, {"length": 10**9}, {"length": "x"}, {"length": -1}, {"length": 5},
           {"shape": (100_000, 2, 2)}, {"body": np.full(8, np.nan, "<f4").tobytes()}, {"body": np.full(8, np.inf, "<f4").tobytes()}]
    assert infer(shape=(2**62, 2, 2))[0] == 413
    for case in bad:
        status, answer = infer(**case)
        assert status == 400 and set(answer) == {"error"}, (case, answer)


