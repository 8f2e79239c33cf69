"""What tests of several packages share."""

from __future__ import annotations

import pytest

KILLS = 15
"""Of each command that writes; `nox -s ordeal` has time for more."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of tests of several packages."""
    parser.getgroup("vitcop").addoption(
        "--kills", type=int, default=KILLS, help="how often each command that writes is killed"
    )


@pytest.fixture(scope="session")
def kills(request: pytest.FixtureRequest) -> int:
    """How often something that writes is killed."""
    found: int = request.config.getoption("--kills")
    return found
