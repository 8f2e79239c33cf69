"""Runs the tests in every mode and compares: `python -m transformers_suite FOLDER [pytest arguments]`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from transformers_suite.outcomes import MODES, RunResult, compare, read_expected
from transformers_suite.summary import describe, shortfalls
from transformers_suite.tree import lay_out, test_files

HERE = Path(__file__).parent
EXPECTED = HERE / "expected.toml"
PROCESSES = 4
"""At most: each imports transformers, and few cores profit from more."""
TIMEOUT = 300
"""Seconds for one test."""


def run(tree: Path, mode: str, arguments: Sequence[str]) -> RunResult:
    """Runs the tests in one mode."""
    result = tree / f"{mode}.json"
    paths = [str(tree), str(tree / "utils"), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    # One thread a process: the processes are as many as the cores.
    own = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "--rootdir", str(tree), "-c", str(tree / "pytest.ini")]
    command += ["-p", "no:cacheprovider", "-p", "transformers_suite.plugin", "--disable-warnings", "--tb=no"]
    command += ["-n", "auto", f"--maxprocesses={PROCESSES}", f"--timeout={TIMEOUT}", "--no-summary"]
    command += [f"--vitcop-mode={mode}", f"--vitcop-result={result}", *test_files(tree), *arguments]
    start = time.monotonic()
    print(f"== {mode}", flush=True)
    code = subprocess.run(command, cwd=tree, env=os.environ | own, check=False).returncode
    # 0 and 1 are verdicts; anything else means that pytest itself could not go on.
    if code not in (0, 1) or not result.is_file():
        raise SystemExit(f"pytest ended with {code} in mode {mode}")
    print(f"{time.monotonic() - start:.0f} s", flush=True)
    return RunResult.read(result)


def main(folder: Path, arguments: Sequence[str]) -> int:
    """Runs all modes and prints what they came to; returns the exit code."""
    known = read_expected(EXPECTED)
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        lay_out(folder.resolve(), tree)
        unpruned = run(tree, "unpruned", arguments)
        others = {mode: run(tree, mode, arguments) for mode in MODES}
    is_fine = True
    for mode, result in others.items():
        comparison = compare(unpruned, result, mode, known)
        print("\n".join(describe(comparison, result, mode)))
        # A choice of tests constructs as many models as it does.
        gaps = [] if arguments else shortfalls(result, mode)
        print("\n".join(gaps), end="\n" if gaps else "")
        is_fine = is_fine and comparison.is_fine and not gaps
    return 0 if is_fine else 1


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit("give the folder that has transformers' tests: a checkout of transformers, or a part of one")
    raise SystemExit(main(Path(sys.argv[1]), sys.argv[2:]))
