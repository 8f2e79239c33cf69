"""CONTRIBUTING.md names sessions, files and commands that are there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CONSOLE = [line[2:] for line in TEXT.splitlines() if line.startswith("$ ")]
QUOTED = {name for name in re.findall(r"`([^`\n]+)`", TEXT) if re.fullmatch(r"[\w./-]+", name)}
PATHS = sorted(name for name in QUOTED if "/" in name or name.endswith((".py", ".md", ".toml", ".txt", ".yaml")))


class Session(NamedTuple):
    """What ``nox --list`` says of a session."""

    is_default: bool
    purpose: str


@pytest.fixture(scope="module")
def sessions() -> dict[str, Session]:
    """Every session by name, from the command that CONTRIBUTING.md names."""
    assert any(command.startswith("python3 -m nox --list ") for command in CONSOLE)
    command = [sys.executable, "-m", "nox", "--list"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found = re.findall(r"^([*-]) (\w+)(?: -> (.+))?$", listed, flags=re.MULTILINE)
    return {name: Session(mark == "*", purpose) for mark, name, purpose in found}


def test_contributing_has_every_session_and_no_other(sessions: dict[str, Session]) -> None:
    table = re.findall(r"^\| `(\w+)` \| ", TEXT, flags=re.MULTILINE)
    assert sorted(table) == sorted(sessions)


def test_every_session_says_what_it_is_for(sessions: dict[str, Session]) -> None:
    assert not [name for name, session in sessions.items() if not session.purpose]


def test_contributing_runs_sessions_that_exist(sessions: dict[str, Session]) -> None:
    ran = [shlex.split(command, comments=True) for command in CONSOLE]
    named = {words[words.index("-s") + 1] for words in ran if "nox" in words and "-s" in words}
    assert {"tests", "demo", "transformers_suite"} <= named <= set(sessions)


def test_contributing_names_the_default_sessions(sessions: dict[str, Session]) -> None:
    (said,) = re.findall(r"the default sessions: ([\w ]+)$", TEXT, flags=re.MULTILINE)
    assert sorted(said.split()) == sorted(name for name, session in sessions.items() if session.is_default)


@pytest.mark.parametrize("path", PATHS)
def test_contributing_names_paths_that_exist(path: str) -> None:
    assert (ROOT / path).exists()


def test_contributing_names_what_it_speaks_of() -> None:
    assert {"constraints.txt", ".ci/run", ".pre-commit-config.yaml", "docs/architecture.md"} < set(PATHS)


def test_pre_commit_runs_the_lint_session() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.search(r"^\s+entry: python3 -m nox -s lint$", hooks, flags=re.MULTILINE)
