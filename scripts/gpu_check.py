"""Everything about vitcop that needs a GPU, most telling first: ``python scripts/gpu_check.py [--second] OUT``.

A run may be cut off at any moment. So every step has a time limit of its own and writes its result as it ends; all
results are packed anew into ``OUT.zip`` then. The first run takes at most nine minutes. ``--second`` does what is left:
sanitizers, a profiler of kernels, larger batches and the other methods. ``--dry-run`` does on a CPU what can be done
there, at small sizes, and says what cannot.

It needs Python 3.11 with torch 2.11 and transformers 5.17, or newer ones, and what else the packages depend on; for the
tests pytest, pytest-xdist and hypothesis; to build the kernels nvcc, ninja and setuptools 77. Nothing is fetched and
nothing is installed: the packages run from their folders. A compiled module that is there already and loads is used as
it is. No setting of the GPU is touched.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import time
import tomllib
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [str(folder) for folder in sorted(ROOT.glob("packages/*/src"))]
sys.path[:0] = SOURCES

from vitcop_core import __version__  # noqa: E402  (found on the path above)
from vitcop_core.files import write_bytes, write_json  # noqa: E402

SECONDS = 540
"""All steps of one run."""

KERNELS = ROOT / "packages" / "vitcop-cuda"
BENCH = ("-c", "from vitcop_llava.tools.cli import main; main()", "bench", "--force")
SANITIZER = ("compute-sanitizer", "--print-limit", "10000", "--show-backtrace", "no", "--error-exitcode", "86")
# Reports of torch's own kernels are none of ours; initcheck alone has to watch them, whose results ours read.
OURS = ("--kernel-regex", "kns=vitcop")


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: Of its log and result.
        seconds: At most.
        command: With ``{out}`` for the folder of results; what begins with ``-`` or ends in ``.py`` is for Python.
        dry: The command of a dry run; None where it cannot be done on a CPU.
        why: What stands in the way there.
        if_there: Arguments to add where the last of them, a step's result, is there.
    """

    name: str
    seconds: int
    command: tuple[str, ...]
    dry: tuple[str, ...] | None = None
    why: str = "needs a GPU"
    if_there: tuple[str, ...] = ()


def bench(*arguments: str, out: str) -> tuple[str, ...]:
    """Return a command of `vitcop bench` on the GPU."""
    return (*BENCH, "--device", "cuda", "--dtype", "bfloat16", *arguments, "--out", f"{{out}}/{out}.json")


def tower(device: str, dtype: str, *size: str) -> tuple[str, ...]:
    """Return a command of the bench of the vision tower."""
    return ("-m", TOWER, "--device", device, *size, "--dtype", dtype, "--out", "{out}/tower.json")


def sanitized(tool: str) -> Step:
    """Return the operators on small inputs, under one tool of compute-sanitizer."""
    ours = () if tool == "initcheck" else OURS
    command = (*SANITIZER, "--tool", tool, *ours, sys.executable, "scripts/sanitized_driver.py")
    return Step(tool, 90, command, why="compute-sanitizer watches a GPU")


PYTEST: tuple[str, ...] = (
    *("-m", "pytest", "-c", os.devnull, "--rootdir", ".", "--import-mode=importlib", "-p", "no:cacheprovider", "-q"),
    *("-o", f"pythonpath={KERNELS / 'tests' / 'support'}", "packages/vitcop-cuda"),
)
MACHINE = """
import subprocess, sys
from vitcop_core.files import write_json
from vitcop_llava.tools.model.environment import environment
write_json(sys.argv[1], environment())
print(subprocess.run(["nvidia-smi"], capture_output=True, text=True).stdout if sys.argv[2:] else "a dry run")
"""
FOUR_CALLS = """
import torch, vitcop_cuda
from vitcop_cuda.bench.formulations import FourCalls
FourCalls("cuda", 0).kernels()
torch.cuda.synchronize()
"""
SMALL = ("--device", "cpu", "--shape", "small", "--method", "vitcop", "--retain", "64", "--repeats", "1")
LAYERS, TOWER, DECODING = (f"vitcop_llava.tools.benchmark.{name}" for name in ("layers", "tower", "decoding"))
SEVEN, THIRTEEN = ("--shape", "llava-1.5-7b"), ("--shape", "llava-next-13b")

FIRST = (
    Step("machine", 20, ("-c", MACHINE, "{out}/machine.json", "gpu"), ("-c", MACHINE, "{out}/machine.json")),
    Step("build", 150, ("scripts/gpu_build.py", "--cuda"), ("scripts/gpu_build.py",)),
    Step(
        "operators", 60, ("scripts/sanitized_driver.py", "--large"), ("scripts/sanitized_driver.py", "--device", "cpu")
    ),
    Step(
        "model",
        240,
        ("scripts/gpu_model_check.py", "--device", "cuda", "--out", "{out}/model-check.json"),
        ("scripts/gpu_model_check.py", "--device", "cpu", "--quick", "--out", "{out}/model-check.json"),
    ),
    Step(
        "bench-7b",
        90,
        bench(*SEVEN, "--method", "vitcop", "--retain", "64,192", "--new-tokens", "16", out="bench-llava-1.5-7b"),
        (*BENCH, *SMALL, "--new-tokens", "2", "--out", "{out}/bench-small.json"),
    ),
    Step(
        "bench-7b-captured",
        70,
        bench(
            *(*SEVEN, "--method", "vitcop", "--retain", "64", "--new-tokens", "4", "--capture"),
            out="bench-llava-1.5-7b-captured",
        ),
        (*BENCH, *SMALL, "--new-tokens", "2", "--capture", "--out", "{out}/bench-small-captured.json"),
    ),
    Step(
        "bench-13b-next",
        100,
        bench(
            *(*THIRTEEN, "--method", "vitcop", "--retain", "160", "--repeats", "3", "--capture"),
            out="bench-llava-next-13b",
        ),
        why="too large for a trial; bench-7b goes the same way",
    ),
    Step(
        "decoding",
        400,
        (
            *("-m", DECODING, "--device", "cuda", "--modes", "captured-tuned", "captured-compiled", "captured"),
            *("compiled", "dynamic", "--out", "{out}/decoding.json"),
        ),
        (
            *("-m", DECODING, "--shape", "small", "--dtype", "float32", "--tokens", "4", "--repeats", "1"),
            *("--modes", "dynamic", "static", "captured", "captured-compiled", "--out", "{out}/decoding.json"),
        ),
    ),
    Step(
        "bench-kernels",
        60,
        (
            *("-m", "vitcop_cuda.bench", "--device", "cuda", "--tokens", "172", "576", "2880", "--repeats", "15"),
            *("--out", "{out}/kernels.json"),
        ),
        why="`nox -s tests` runs it on a CPU",
        if_there=("--prefill", "{out}/bench-llava-1.5-7b.json"),
    ),
    Step(
        "layers",
        40,
        ("-m", LAYERS, "--device", "cuda", "--batch", "8", "--out", "{out}/layers.json"),
        why="`nox -s tests` runs it on a CPU",
    ),
    Step(
        "tower",
        40,
        tower("cuda", "bfloat16", "--images", "8"),
        tower("cpu", "float32", "--tower", "small", "--rounds", "1"),
    ),
    Step("tests", 120, (*PYTEST, "--backend", "cuda", "--require-cuda", "-n", "4"), why="`nox -s tests` does on a CPU"),
    sanitized("memcheck"),
)
SECOND = (
    *FIRST[:2],
    *(sanitized(tool) for tool in ("racecheck", "synccheck", "initcheck")),
    Step(
        "bench-7b-batch-8",
        90,
        bench(*SEVEN, "--method", "vitcop", "--retain", "64", "--batch", "8", out="bench-7b-batch-8"),
        why="too large for a trial; bench-7b goes the same way",
    ),
    Step(
        "bench-7b-methods",
        120,
        bench(*SEVEN, "--retain", "64", "--repeats", "3", out="bench-7b-methods"),
        why="too large for a trial; bench-7b goes the same way",
    ),
    Step(
        "ncu",
        60,
        ("ncu", "--clock-control", "none", "-k", "regex:vitcop", "--csv", sys.executable, "-c", FOUR_CALLS),
        why="ncu profiles a GPU",
    ),
)


@dataclass
class Outcome:
    """What became of a step; ``status`` is "passed", "failed", "cut off" or "cannot: " and why."""

    name: str
    status: str
    seconds: float
    command: list[str]
    exit_code: int | None = None


def write_metadata(folder: Path) -> None:
    """Write what the installed packages would be known by: their versions, and the families that they bring."""
    for file in sorted(ROOT.glob("packages/*/pyproject.toml")):
        project = tomllib.loads(file.read_text())["project"]
        name, version = project["name"].replace("-", "_"), project.get("version", __version__)
        known = folder / f"{name}-{version}.dist-info"
        known.mkdir(parents=True, exist_ok=True)
        about = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {version}\n"
        (known / "METADATA").write_text(about)
        groups = project.get("entry-points", {}).items()
        lines = (line for group, points in groups for line in (f"[{group}]", *map(" = ".join, points.items())))
        (known / "entry_points.txt").write_text("\n".join(lines))


def make_environment(metadata: Path) -> dict[str, str]:
    """Return what every step runs in: the packages from their folders, the tools of CUDA and of this Python on the
    path.
    """
    write_metadata(metadata)
    environment = dict(os.environ)
    cuda = Path(environment.get("CUDA_HOME", "/usr/local/cuda")) / "bin"
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"], str(cuda)])
    inherited = [environment["PYTHONPATH"]] if environment.get("PYTHONPATH") else []
    environment["PYTHONPATH"] = os.pathsep.join([*SOURCES, str(metadata), *inherited])
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def run_step(step: Step, command: tuple[str, ...], limit: float, out: Path, environment: dict[str, str]) -> Outcome:
    """Run one command, with its output in a log of its name."""
    # Commands are stored with their results: as one would type them here, where the results lie below.
    shown = out.relative_to(ROOT) if out.is_relative_to(ROOT) else out
    words, more = ([word.replace("{out}", str(shown)) for word in each] for each in (command, step.if_there))
    if more and (ROOT / more[-1]).exists():
        words += more
    if words[0].startswith("-") or words[0].endswith(".py"):
        words.insert(0, sys.executable)
    started, status, code = time.monotonic(), "cut off", None
    with (out / f"{step.name}.log").open("wb") as log:
        try:
            done = subprocess.run(
                words, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=limit, check=False
            )
        except subprocess.TimeoutExpired:
            pass
        except OSError as error:
            status = f"cannot: {error}"
        else:
            code, status = done.returncode, "passed" if done.returncode == 0 else "failed"
    return Outcome(step.name, status, round(time.monotonic() - started, 1), words, code)


def pack(out: Path) -> None:
    """Write all results so far into one archive beside the folder, in place of the one before."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(out.rglob("*")):
            if path.is_file() and ".metadata" not in path.parts:
                archive.write(path, path.relative_to(out))
    write_bytes(out.with_name(f"{out.name}.zip"), content.getvalue())


def tail(log: Path, lines: int = 15) -> str:
    """Return the end of a log."""
    return "\n".join(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-lines:])


def run_all(steps: tuple[Step, ...], out: Path, seconds: float, *, dry: bool) -> list[Outcome]:
    """Run the steps one after the other, whatever becomes of each, until the time is over."""
    environment, deadline, outcomes = make_environment(out / ".metadata"), time.monotonic() + seconds, []
    for step in steps:
        command = step.dry if dry else step.command
        left = deadline - time.monotonic()
        if command is None:
            outcome = Outcome(step.name, f"cannot: {step.why}", 0.0, list(step.command))
        elif left < 5:
            outcome = Outcome(step.name, "cannot: no time was left", 0.0, list(command))
        else:
            outcome = run_step(step, command, min(step.seconds, left), out, environment)
        outcomes.append(outcome)
        print(f"{outcome.status:10}  {step.name} ({outcome.seconds:.0f} s)", flush=True)
        if outcome.status in ("failed", "cut off"):
            print(tail(out / f"{step.name}.log"), flush=True)
        write_json(out / "steps.json", [asdict(each) for each in outcomes])
        pack(out)
    return outcomes


def main() -> None:
    """Run the steps, and exit with 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the results; the archive is beside it")
    parser.add_argument("--second", action="store_true", help="what the first run leaves out")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, at small sizes")
    parser.add_argument("--steps", nargs="+", metavar="STEP", help="of both runs, these alone, and the first two")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all steps together")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    steps = FIRST + SECOND[2:] if options.dry_run else SECOND if options.second else FIRST
    if options.steps:
        known = {step.name: step for step in FIRST + SECOND[2:]}
        if unknown := [name for name in options.steps if name not in known]:
            parser.error(f"steps must be of {', '.join(known)}, got {', '.join(unknown)}")
        steps = FIRST[:2] + tuple(known[name] for name in options.steps)
    outcomes = run_all(steps, out, options.seconds, dry=options.dry_run)
    print(f"results: {out.name}.zip beside {out}")
    wrong = [each.name for each in outcomes if each.status in ("failed", "cut off")]
    sys.exit(f"did not pass: {', '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main()
