"The OpenAPI document: every route is in it, its example is answered, and requests that schemathesis makes from it never fail the server."
from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tests.serve.protocol_models import PIXELS, ROW, LocalApp, real_server, served_model

SOAK = int(os.environ.get("MLCYCLE_SOAK") or 1)
CASES = 20 * SOAK  # For each operation and mode: some 400 requests, about 25 s of CPU; MLCYCLE_SOAK=5 sends more than 2,000


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with real_server(tmp_path_factory.mktemp("openapi"), "people", "pixels") as (server, _):
        yield server.url


def local_app(folder: Path) -> LocalApp:
    pixels = served_model(folder, PIXELS, lambda data: {"prediction": data.reshape(len(data), -1).sum(axis=1)}, "pixels/of 1",
                          {"records": [[[0.0, 0.0], [0.0, 1.0]]]})
    return LocalApp(folder, served_model(folder, example={"records": [ROW, ROW]}), pixels)


def test_every_route_is_described(tmp_path: Path) -> None:
    "With its real columns, types, nulls and categories; each schema that is referred to is there."
    app = local_app(tmp_path)
    document = json.loads(app.ask("GET", "/openapi.json")[2])
    described = {(unquote(path), method.upper()) for path, operations in document["paths"].items() for method in operations}
    assert described == {(route.path, route.method) for route in app.routes} and document["openapi"] == "3.1.0"
    row = document["components"]["schemas"]["people.row"]
    assert row["properties"]["city"] == {"enum": ["Köln", "Ulm"]} and row["properties"]["income"] == {"type": ["number", "null"]}
    assert row["required"] == list(ROW) and row["additionalProperties"] is False
    text = json.dumps(document)
    references = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert references == set(document["components"]["schemas"])
    ids = [operation["operationId"] for operations in document["paths"].values() for operation in operations.values()]
    assert len(set(ids)) == len(ids)


def test_examples_are_answered(tmp_path: Path) -> None:
    "Whoever copies an example gets an answer."
    app = local_app(tmp_path)
    document = json.loads(app.ask("GET", "/openapi.json")[2])
    tried = set()
    for path, operations in document["paths"].items():
        for content_type, content in operations.get("post", {}).get("requestBody", {}).get("content", {}).items():
            if "example" in content:
                status, _, answer = app.ask("POST", unquote(path), json.dumps(content["example"]).encode(), content_type=content_type)
                assert status == 200, (path, answer)
                tried.add(path.rpartition("/")[2])
    assert tried == {"predict", "infer", "invocations"}


def test_the_page_of_a_server(tmp_path: Path) -> None:
    "Names, columns and categories are there, and text of a model cannot become markup."
    app = LocalApp(tmp_path, served_model(tmp_path, name="<b>people", example={"records": [ROW]}))
    status, headers, page = app.ask("GET", "/docs")
    assert status == 200 and headers["content-type"].startswith("text/html") and "default-src 'none'" in headers["content-security-policy"]
    assert all(name in page.decode() for name in (*ROW, "Köln, Ulm", "&lt;b&gt;people/3")) and "<b>people" not in page.decode()
    assert "http://" not in page.decode() and "https://" not in page.decode()


def test_protocols_import_nothing_heavy() -> None:
    "A worker with compiled forms has neither pandas nor scikit-learn in memory, and pyarrow only when a body needs it."
    code = "import sys, mlcycle.serve.worker; print(sorted({'pandas', 'sklearn', 'pyarrow', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_request_fails_the_server(url: str) -> None:
    "schemathesis makes requests that fit the document and such that do not, for each operation; none is answered with 500 or above."
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis import GenerationMode

    with urllib.request.urlopen(f"{url}/openapi.json") as response:
        schema = schemathesis.openapi.from_dict(json.load(response))
    schema.config.base_url = url
    sent: dict[int, int] = {}

    def send(case: Any) -> None:
        response = case.call(timeout=120)
        sent[response.status_code] = sent.get(response.status_code, 0) + 1
        assert response.status_code < 500, (case.method, case.formatted_path, case.body, response.text)
        json_types = ("application/json", "application/problem+json")
        assert response.headers["content-type"][0].partition(";")[0] in (*json_types, "text/html", "text/plain"), response.headers
        if response.status_code >= 400 and "/v2" not in case.path:
            assert set(response.json()) >= {"type", "title", "status", "detail"}

    limits = settings(max_examples=CASES, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    for operation in schema.get_all_operations():
        modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE] if operation.ok().method == "post" else [GenerationMode.POSITIVE]
        for mode in modes:
            limits(given(case=operation.ok().as_strategy(generation_mode=mode))(lambda case: send(case)))()
    print(sent)  # statuses, each with how often it was answered
    with urllib.request.urlopen(f"{url}/readyz") as response:
        assert response.status == 200
    assert sent[200] > 20 and sum(sent.values()) >= 100 * SOAK
