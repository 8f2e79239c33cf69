"""Importing the package imports no decoder, and reading a video none but the one that reads it."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import vitcop_video

PROBE = """
import sys
import vitcop_video
print(sorted({"av", "decord", "torchcodec", "torch", "numpy"} & set(sys.modules)))
from vitcop_video import read_video
print(sorted({"decord", "torchcodec", "transformers", "torchvision"} & set(sys.modules)))
"""


def test_import_is_lean() -> None:
    result = subprocess.run([sys.executable, "-W", "error", "-c", PROBE], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n") == ["[]", "[]", ""]


def test_version_matches_the_distribution() -> None:
    assert vitcop_video.__version__ == version("vitcop-video")


def test_public_names_exist_once() -> None:
    assert all(hasattr(vitcop_video, name) for name in vitcop_video.__all__)
    assert len(set(vitcop_video.__all__)) == len(vitcop_video.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="frobnicate"):
        vitcop_video.frobnicate  # noqa: B018
