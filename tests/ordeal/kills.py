"""Commands that write, killed at random moments: the tests of that, with more kills than the suite has time for."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
TESTS = (
    "packages/vitcop-llava/tests/test_kills.py",
    "packages/vitcop-llava/tests/test_prefix_damage.py::test_kill_leaves_the_name_absent_or_whole",
    "tests_lmms/test_kills.py",
)


def run(kills: int) -> list[dict[str, Any]]:
    """Kills each command so often; returns a row for each: its name, how often it was killed, seconds, and a fault."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-W",
            "default",  # what lmms-eval warns of is none of our business
            f"--kills={kills}",
            "-o",
            "junit_family=xunit1",
        ]
        done = subprocess.run(
            [*command, f"--junitxml={report}", *TESTS], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if not report.exists():
            raise RuntimeError(f"the tests of kills did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        cases = ElementTree.parse(report).getroot().iter("testcase")
        return [row_of(case) for case in cases]


def row_of(case: ElementTree.Element) -> dict[str, Any]:
    """What a test came to."""
    told = {each.get("name"): each.get("value") for each in case.iter("property")}
    failure = case.find("failure")
    failure = case.find("error") if failure is None else failure
    return {
        "name": told.get("command") or case.get("name"),
        "killed": int(told.get("killed") or 0),
        "seconds": float(case.get("time") or 0),
        "fault": None if failure is None else (failure.get("message") or "failed")[:500],
    }
