"""``vitcop doctor``: what is installed, which kernels and backends are live, and why not."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from vitcop_llava.tools.cli.options import AsJson, Debug
from vitcop_llava.tools.cli.output import add_row, make_table, print_json, print_result, progress
from vitcop_llava.tools.media.video_support import need_support

PACKAGES = (
    *("torch", "transformers", "numpy", "pillow", "vitcop-core", "vitcop-llava", "vitcop-cuda", "vitcop-video"),
    *("vitcop-vllm", "vllm", "lmms_eval", "ray"),
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for: in which section, whether it is there, and its particulars or why it is not.

    ``facts`` are particulars for --json that ``detail`` has only as words.
    """

    section: str
    name: str
    found: bool
    detail: str
    facts: dict[str, str | int] = field(default_factory=dict)


def doctor(as_json: AsJson = False, debug: Debug = False) -> None:
    """Say what is installed, which kernels and attention backends are in use, and why others are not."""
    with progress("looking around"):
        findings = [*_versions(), *_devices(), *_attention(), *_kernels(), _torchvision(), *_video(), _demo_weights()]
    if as_json:
        print_json(_as_json(findings))
        return
    table = make_table(("", "", "", ""))
    section = None
    for finding in findings:
        if section not in (None, finding.section):
            table.add_section()
        heading = "" if finding.section == section else finding.section
        add_row(table, heading, finding.name, "yes" if finding.found else "no", finding.detail)
        section = finding.section
    print_result(table)


def _as_json(findings: list[Finding]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for each in findings:
        section = content.setdefault(each.section.replace(" ", "_"), {})
        section[each.name] = {"found": each.found, "detail": each.detail} | each.facts
    return content


def _versions() -> list[Finding]:
    found = [
        Finding("versions", "python", True, f"{platform.python_version()}, {platform.system()} {platform.release()}")
    ]
    for name in PACKAGES:
        version = _version(name)
        found.append(Finding("versions", name, version is not None, version or "not installed"))
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _failure(module: str) -> str | None:
    """Return why a module cannot be imported; None where it can."""
    try:
        import_module(module)
    except Exception as error:  # a package that was built for another torch fails in ways of its own
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _devices() -> list[Finding]:
    if failure := _failure("torch"):
        return [Finding("devices", "torch", False, failure)]
    import torch

    found = [Finding("devices", "cpu", True, f"{platform.machine()}, {_threads(torch.get_num_threads())}")]
    if torch.version.cuda is None:
        found.append(Finding("devices", "cuda", False, f"torch {torch.__version__} is built without CUDA"))
    elif not torch.cuda.is_available():
        found.append(Finding("devices", "cuda", False, f"CUDA {torch.version.cuda}: no usable driver or device"))
    else:
        for index in range(torch.cuda.device_count()):
            seen = torch.cuda.get_device_properties(index)
            detail = f"{seen.name}, {seen.total_memory / 2**30:.0f} GiB, compute capability {seen.major}.{seen.minor}"
            found.append(Finding("devices", f"cuda:{index}", True, f"{detail}, CUDA {torch.version.cuda}"))
    if platform.system() == "Darwin":
        there = torch.backends.mps.is_available()
        found.append(Finding("devices", "mps", there, "Metal" if there else "not available to this torch"))
    return found


def _attention() -> list[Finding]:
    if failure := _failure("transformers"):
        return [Finding("attention", name, False, failure) for name in ("eager", "sdpa", "flash_attention_2")]
    import torch
    from transformers.utils.import_utils import is_flash_attn_2_available

    found = [
        Finding("attention", "eager", True, "plain torch"),
        Finding("attention", "sdpa", True, "torch's fused attention; transformers' default"),
    ]
    version = _version("flash-attn")
    if version is None:
        detail = "flash-attn is not installed"
    elif failure := _failure("flash_attn"):
        detail = failure
    elif not torch.cuda.is_available():
        detail = f"flash-attn {version}, but no CUDA device"
    else:
        detail = f"flash-attn {version}"
    return [*found, Finding("attention", "flash_attention_2", bool(is_flash_attn_2_available()), detail)]


def _kernels() -> list[Finding]:
    reference = Finding("kernels", "reference", True, "every operator, in PyTorch, on every device")
    if failure := _failure("vitcop_core"):
        reference = Finding("kernels", "reference", False, failure)
    if _version("vitcop-cuda") is None:
        missing = "vitcop-cuda is not installed; the reference runs"
    elif failure := _failure("vitcop_cuda"):
        missing = f"{failure}; the reference runs"
    else:
        return [reference, *_compiled()]
    return [reference, *(Finding("kernels", name, False, missing) for name in ("cpu", "cuda"))]


def _compiled() -> list[Finding]:
    built = import_module("vitcop_cuda").build_information()
    cpu = built.no_cpu_because or f"built with torch {built.torch} by {built.compiler}"
    cuda = built.no_cuda_because or f"built for CUDA {built.cuda}, {', '.join(built.architectures)}"
    return [
        Finding("kernels", "cpu", not built.no_cpu_because, cpu),
        Finding("kernels", "cuda", not built.no_cuda_because, cuda),
    ]


def _torchvision() -> Finding:
    if _version("torchvision") is None:
        return Finding("images", "torchvision", False, "not installed, not needed: Pillow prepares images")
    failure = _failure("torchvision")
    return Finding("images", "torchvision", failure is None, failure or f"{_version('torchvision')}")


def _video() -> list[Finding]:
    """Return the readers, in the order in which they are preferred; the first that is there reads where none is asked
    for.
    """
    if _version("vitcop-video") is None:
        return [Finding("video", "reading", False, "vitcop-video is not installed")]
    try:
        readers = need_support().readers()
    except Exception as error:  # as with packages that do not import
        return [Finding("video", "reading", False, f"{type(error).__name__}: {error}".splitlines()[0])]
    found = []
    usual = next((name for name, reason in readers.items() if reason is None), None)
    for name, reason in readers.items():
        facts: dict[str, str | int] = {"is_default": name == usual}
        detail = reason or ("reads where no other is asked for" if name == usual else f"--reader {name}")
        found.append(Finding("video", name, reason is None, detail, facts))
    return found


def _demo_weights() -> Finding:
    # Not from loading.py, which needs all the libraries that may be what is missing.
    weights = Path(__file__).parents[1] / "demo" / "weights" / "model.safetensors"
    if not weights.is_file():
        return Finding("demo model", "weights", False, f"no {weights}; commands need --model")
    with weights.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    size = weights.stat().st_size
    facts: dict[str, str | int] = {"path": str(weights), "bytes": size, "sha256": digest}
    return Finding("demo model", "weights", True, f"{size / 2**20:.1f} MiB, sha256 {digest}", facts)
