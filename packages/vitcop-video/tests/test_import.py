"""The package carries the version of its distribution."""

from __future__ import annotations

import importlib.metadata

import vitcop_video


def test_version_matches_the_distribution() -> None:
    assert vitcop_video.__version__ == importlib.metadata.version("vitcop-video")
