"""The package is a shell: it imports, carries a version, and adds nothing that it does not have."""

from __future__ import annotations

import importlib.metadata

import vitcop_video


def test_version_matches_the_distribution() -> None:
    assert vitcop_video.__version__ == importlib.metadata.version("vitcop-video")


def test_shell_exports_nothing() -> None:
    public = [name for name in vars(vitcop_video) if not name.startswith("_")]
    assert public == []
