"""The command as a process: it starts without torch, and errors in its arguments are errors like all others."""

import json
import subprocess
import sys
import tomllib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vitcop_llava.tools import command
from vitcop_llava.tools.cli import app

HELP_ALONE = """
import sys
from vitcop_llava.tools.cli import app
try:
    app(sys.argv[1:])
finally:
    print(*sorted({"torch", "transformers", "numpy", "PIL"} & set(sys.modules)), file=sys.stderr)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["ask", "--help"], ["--version"], ["ask", "--retain", "x"], ["bench", "--help"]]
)
def test_command_line_itself_loads_no_library(arguments: list[str]) -> None:
    result = run("-c", HELP_ALONE, *arguments)
    assert result.stderr.splitlines()[-1] == ""
    assert "Traceback" not in result.stderr


def test_vitcop_runs_as_a_process() -> None:
    result = run("-W", "error", "-c", "from vitcop_llava.tools.command import main; main()", "frobnicate", "--json")
    assert result.returncode == 2
    assert json.loads(result.stdout)["error"] == "No such command 'frobnicate'."
    assert result.stderr == ""


def test_vitcop_without_its_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without(name: str) -> object:
        return None if name in ("PIL", "matplotlib") else find_spec(name)

    monkeypatch.setattr(command, "find_spec", without)
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2
    assert capsys.readouterr() == ("", 'vitcop needs matplotlib, PIL: pip install "vitcop-llava[tools]"\n')


def test_extra_installs_what_the_command_looks_for() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["vitcop"] == "vitcop_llava.tools.command:main"
    wanted = {{"pillow": "PIL"}.get(name, name) for name in project["optional-dependencies"]["tools"]}
    assert wanted == set(command.NEEDS)


def test_help_lists_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert all(name in result.stdout for name in ("ask", "show", "bench", "scene", "doctor", "--version"))


def test_version_is_the_packages() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"vitcop {version('vitcop-llava')}\n"


@pytest.mark.parametrize("arguments", [["ask", "--bogus"], ["show"], ["ask", "a", "b", "--max-new-tokens", "0"]])
def test_arguments_that_cannot_be_parsed_exit_with_two(arguments: list[str]) -> None:
    plain = CliRunner().invoke(app, arguments)
    assert (plain.exit_code, plain.stdout) == (2, "")
    assert "Usage" in plain.stderr
    as_json = CliRunner().invoke(app, [*arguments, "--json"])
    assert (as_json.exit_code, as_json.stderr) == (2, "")
    assert set(json.loads(as_json.stdout)) == {"error", "exit_code"}


def test_flags_after_two_dashes_are_arguments() -> None:
    result = CliRunner().invoke(app, ["ask", "--", "--json"])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
