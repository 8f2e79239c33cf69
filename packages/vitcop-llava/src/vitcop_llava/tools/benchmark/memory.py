"""Whether a model will fit, before it is made."""

from __future__ import annotations

from pathlib import Path

import torch

_CGROUP, _MEMORY = Path("/sys/fs/cgroup"), Path("/proc/meminfo")


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that a process can still take on a device; None where the system does not say (other than
    Linux).
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu" or not _MEMORY.is_file():
        return None
    lines = dict(line.split(":", 1) for line in _MEMORY.read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = (_number(_CGROUP / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return available
    return min(available, limit - used + (_file_cache() or 0))


def _number(path: Path) -> int | None:
    """Return a control group's number; None where there is none, or no limit (``max``)."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _file_cache() -> int | None:
    """Return the bytes of the control group that are cached files, which give way."""
    try:
        fields = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    return int(fields["inactive_file"])
