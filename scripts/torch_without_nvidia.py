"""Makes torch's build for CUDA importable by this interpreter where NVIDIA's libraries are not installed.

For checks on machines without a GPU. torch finds a library of every name that it wants, an empty one where the real one
is missing, and looks for a function when that is called and not before: what runs on the CPU then runs as anywhere.
Functions whose addresses torch's tables hold have to be real: those of the packages nvidia-cuda-runtime and
nvidia-cuda-cupti.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sysconfig
from pathlib import Path

NVIDIA = re.compile(r"lib(cu|nccl|nvrtc|nvshmem)\w*\.so\.\d+")
LAZY_BINDING = "import os, sys; sys.setdlopenflags(os.RTLD_LAZY)\n"


def torch_libraries() -> Path:
    """Return the folder of torch's libraries, without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise SystemExit("torch is not installed here")
    return Path(spec.origin).parent / "lib"


def needed(folder: Path) -> set[str]:
    """Return the NVIDIA libraries that those of a folder name."""
    names: set[str] = set()
    for library in folder.glob("*.so*"):
        listed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
        names.update(re.findall(r"\(NEEDED\).*\[(.+)\]", listed))
    return {name for name in names if NVIDIA.fullmatch(name)}


def main() -> None:
    """Write the libraries that are missing, and have this interpreter bind lazily."""
    site = Path(sysconfig.get_paths()["purelib"])
    libraries = torch_libraries()
    folder = site / "nvidia" / "cu13" / "lib"  # where torch looks, beside its own
    missing = sorted(name for name in needed(libraries) if not (folder / name).exists())
    if {"libcudart.so.13", "libcupti.so.13"} & set(missing):
        raise SystemExit("install nvidia-cuda-runtime and nvidia-cuda-cupti first, for CUDA 13, without dependencies")
    for name in missing:
        options = ["-shared", "-nostdlib", f"-Wl,-soname,{name}", "-o", str(folder / name), "-x", "c", "/dev/null"]
        subprocess.run(["gcc", *options], check=True)
    (site / "vitcop_lazy_binding.pth").write_text(LAZY_BINDING)
    print(f"{len(missing)} empty libraries in {folder}")


if __name__ == "__main__":
    main()
