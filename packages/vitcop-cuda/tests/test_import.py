"""The package is a shell: it imports, carries a version, and adds nothing that it does not have."""

from __future__ import annotations

import importlib.metadata

import vitcop_cuda


def test_version_matches_the_distribution() -> None:
    assert vitcop_cuda.__version__ == importlib.metadata.version("vitcop-cuda")


def test_shell_exports_nothing() -> None:
    public = [name for name in vars(vitcop_cuda) if not name.startswith("_")]
    assert public == []
