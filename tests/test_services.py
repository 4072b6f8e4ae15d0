"The services that other tests stand on: started for real, isolated, and never silently missing."
from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tests import conftest, services


class Nowhere:
    "A service that no machine has."

    def __init__(self):
        raise services.Missing("it is not installed (apt-get install nowhere)")


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_missing_service(monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]) -> None:
    "A missing service skips with the way to get it; with CI=true it fails, so that nothing is left out unseen."
    monkeypatch.setenv("CI", ci)
    monkeypatch.setitem(services.SERVICES, "nowhere", Nowhere)
    monkeypatch.setattr(conftest, "_running", {})
    with pytest.raises(outcome, match=r"needs nowhere: .*apt-get install nowhere"):
        conftest.need("nowhere")


def test_tests_are_isolated(tmp_path: Path) -> None:
    "A test starts in its own folder, sees no setting of whoever started pytest, and finds its store there."
    from mlcycle.store.connect import current_store

    assert Path.cwd() == tmp_path and [name for name in os.environ if name.startswith(("MLCYCLE_", "AWS_"))] == ["MLCYCLE_WARM"]
    assert Path(current_store().db.where).is_relative_to(tmp_path)


@pytest.mark.parametrize("name", ["postgresql", "s3"])
def test_services_listen_on_loopback_only(name: str) -> None:
    "What the tests start cannot be reached from elsewhere."
    port = conftest.need(name).port
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"]
    assert {address.split(":")[0] for address in listening if int(address.split(":")[1], 16) == port} == {"0100007F"}


@pytest.mark.needs("chromium")
def test_browser_starts() -> None:
    "The browser opens a page, as root too."
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**conftest.need("chromium").options)
        page = browser.new_page()
        page.set_content("<p id='x'>hello</p>")
        assert page.inner_text("#x") == "hello"
        browser.close()
