"""Compiles the CUDA half of vitcop-cuda where there is no GPU, and holds its figures against the stored report.

Every .cu file is compiled by nvcc for sm_80, sm_90, sm_100 and the newest architecture that it knows, every warning an
error. ptxas says what each kernel takes; a spill to local memory is an error. The glue to torch is compiled too,
against the headers of whatever torch is installed, and linked with the kernels: what is left undefined must be in
torch's stable interface, in CUDA's runtime or in a system library. ``--write`` stores the report in
docs/benchmarks/ptxas.json.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from abi_check import foreign
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "packages" / "vitcop-cuda"
SOURCES = PACKAGE / "csrc"
REPORT = ROOT / "docs" / "benchmarks" / "ptxas.json"
ALWAYS = (80, 90, 100)

COMPILING = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")

Figures = dict[str, Any]


def run(*command: str | Path) -> str:
    """Return standard output and error of a command, which must succeed."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}")
    return done.stdout


def build_setting(name: str) -> list[Any]:
    """Return a list as setup.py has it: what is checked is what is built."""
    for node in ast.parse((PACKAGE / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            value: list[Any] = ast.literal_eval(node.value)
            return value
    raise SystemExit(f"packages/vitcop-cuda/setup.py has no {name}")


def architectures(nvcc: str) -> list[int]:
    """Return sm_80, sm_90, sm_100 and the newest one, of those that this nvcc knows."""
    known = [int(number) for number in re.findall(r"compute_(\d+)$", run(nvcc, "--list-gpu-arch"), re.MULTILINE)]
    return sorted({*ALWAYS, max(known)} & {*known})


def parse(text: str) -> list[Figures]:
    """Return what ptxas said of every kernel."""
    found: list[Figures] = []
    for line in text.splitlines():
        if match := COMPILING.search(line):
            found.append({"kernel": match[1], "architecture": match[2], "shared_bytes": 0})
        elif match := STACK.search(line):
            numbers = dict(zip(("stack_bytes", "spill_stores", "spill_loads"), map(int, match.groups()), strict=True))
            found[-1].update(numbers)
        elif match := USED.search(line):
            found[-1]["registers"] = int(match[1])
            if shared := SHARED.search(line):
                found[-1]["shared_bytes"] = int(shared[1])
    return found


def readable(figures: list[Figures]) -> list[Figures]:
    """Return the same with C++ names, in a fixed order."""
    if not figures:
        raise SystemExit("ptxas reported no kernel")
    names = [entry["kernel"] for entry in figures]
    for entry, name in zip(figures, run("c++filt", *names).splitlines(), strict=True):
        entry["kernel"] = re.sub(r"^void vitcop::cuda::run<(.*)>\(.*\)$", r"\1", name).replace("vitcop::", "").strip()
    return sorted(figures, key=lambda entry: (entry["kernel"], entry["architecture"]))


def compile_kernels(nvcc: str, target: Path) -> list[Figures]:
    """Compile every .cu file, and return what ptxas said."""
    codes = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures(nvcc)]
    flags: list[str | Path] = [
        *build_setting("NVCC_FLAGS"),
        "-std=c++17",
        *("-Werror", "all-warnings"),
        *codes,
        "-Xcompiler=-fPIC",
        "-Xptxas",
        "-v",
        "-I",
        SOURCES,
        "-I",
        SOURCES / "include",
    ]

    def compiled(source: Path) -> list[Figures]:
        return parse(run(nvcc, *flags, "-c", source, "-o", target / f"{source.stem}.o"))

    sources = sorted((SOURCES / "cuda").glob("*.cu"))
    with ThreadPoolExecutor(2) as pool:
        parts = tqdm(pool.map(compiled, sources), desc="nvcc", total=len(sources), file=sys.stderr)
        return readable([entry for part in parts for entry in part])


def cuda_headers(nvcc: str) -> Path:
    """Return the folder of nvcc's own cuda_runtime_api.h."""
    listed = run(nvcc, "--dryrun", "-c", SOURCES / "cuda" / "vic.cu", "-o", "unused.o")
    for flag in re.findall(r'-I"?([^"\s]+)', listed):
        if (Path(flag) / "cuda_runtime_api.h").is_file():
            return Path(flag)
    raise SystemExit("nvcc has no cuda_runtime_api.h")


def link_glue(nvcc: str, target: Path) -> None:
    """Compile the registration of the CUDA kernels, link it with them, and look at what is left undefined."""
    from torch.utils import cpp_extension

    macros = [f"-D{name}" + (f"={value}" if value else "") for name, value in build_setting("MACROS")]
    folders = [SOURCES, SOURCES / "include", *cpp_extension.include_paths(), cuda_headers(nvcc)]
    flags = [*(flag for flag in build_setting("CXX_FLAGS") if not flag.startswith("-O")), *macros]
    flags += [f"-I{folder}" for folder in folders]
    source, library = SOURCES / "cuda" / "register.cpp", target / "kernels.so"
    run("g++", "-std=c++17", "-O0", "-fPIC", *flags, "-c", source, "-o", target / "register.o")
    run("g++", "-shared", *sorted(target.glob("*.o")), "-o", library)
    stable, others = foreign(library)
    # Of CUDA's runtime, which only the real build links, what a launch needs.
    if unknown := [name for name in others if not re.match(r"_*cuda\w+$", name)]:
        raise SystemExit("the CUDA kernels need what is not in torch's stable interface: " + ", ".join(unknown))
    print(f"linked; {len(stable)} functions of torch, all of its stable interface")


def version(nvcc: str) -> str:
    """Return the version of nvcc."""
    found = re.search(r"release \S+ (V\S+)", run(nvcc, "--version"))
    return found[1] if found else "unknown"


def main() -> None:
    """Compile, check, and store or compare the report."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--write", action="store_true", help="store the report")
    options.add_argument("--require-nvcc", action="store_true", help="fail where there is no nvcc, instead of skipping")
    given = options.parse_args()
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        if given.require_nvcc:
            raise SystemExit("no nvcc on the path: the CUDA files cannot be compiled")
        print("SKIPPED: no nvcc on the path, so the CUDA files were not compiled")
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = compile_kernels(nvcc, Path(folder))
        link_glue(nvcc, Path(folder))
    spilled = [entry for entry in figures if entry["spill_stores"] or entry["spill_loads"]]
    if spilled:
        raise SystemExit("ptxas spilled:\n" + "\n".join(map(str, spilled)))
    most = max(figures, key=lambda entry: entry["registers"])
    kinds = sorted({entry["architecture"] for entry in figures})
    print(
        f"{len(figures)} kernels for {', '.join(kinds)}: no spills; "
        f"at most {most['registers']} registers ({most['kernel']})"
    )
    command = "python scripts/cuda_compile.py --write"
    report = {"command": command, "nvcc": version(nvcc), "flags": build_setting("NVCC_FLAGS"), "kernels": figures}
    if given.write:
        REPORT.write_text(json.dumps(report, indent=1) + "\n")
    elif not REPORT.exists() or json.loads(REPORT.read_text()) != report:
        print(f"NOTE: {REPORT.relative_to(ROOT)} is out of date; {command} renews it")


if __name__ == "__main__":
    main()
