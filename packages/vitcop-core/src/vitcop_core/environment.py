"""What a stored result was measured on: machine and versions, as plain data."""

import os
import platform
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict

import torch


class Environment(TypedDict):
    """A machine, and the versions of packages by name; of one that is not installed None."""

    processor: str
    cores: int | None
    threads: int
    accelerator: str | None
    system: str
    python: str
    packages: dict[str, str | None]


def environment_of(packages: Iterable[str]) -> Environment:
    """Return processor, cores, threads, accelerator, and the versions of torch and other packages.

    Args:
        packages: Distributions to look up; one that is not installed has None.
    """
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": sys.version.split()[0],
        "packages": {name: package_version(name) for name in ("torch", *packages)},
    }


def machine_of(environment: Environment) -> str:
    """Return what tables call the machine: its accelerator, or its cores where there is none."""
    return environment["accelerator"] or f"{environment['cores']} cores of {environment['processor']}"


def package_version(package: str) -> str | None:
    """Return the version of an installed distribution; None where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    for line in information.read_text().splitlines() if information.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
