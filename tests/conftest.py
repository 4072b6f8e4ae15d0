"What every test may ask for."
from __future__ import annotations

import os
from collections.abc import Callable

import pytest

CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")


@pytest.fixture(scope="session")
def needs() -> Callable[..., None]:
    "`needs('PostgreSQL', available, how)`: skip where a service is missing; where CI=true fail, since there everything is installed."

    def check(
        service: str,      # What the test cannot do without
        available: object,  # True when it is there
        how: str = "",     # How to get it
    ) -> None:
        if not available:
            message = f"needs {service}" + (f": {how}" if how else "")
            (pytest.fail if CI else pytest.skip)(message)

    return check


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    "No test sees the store, run or experiment of whoever starts pytest."
    for name in [name for name in os.environ if name.startswith("MLCYCLE_")]:
        monkeypatch.delenv(name)
