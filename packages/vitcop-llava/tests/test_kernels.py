"""Compiled kernels are taken where they are, and missed aloud where they should be."""

import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import Any

import pytest

from vitcop_llava import kernels


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    kernels.load_kernels.cache_clear()
    yield
    kernels.load_kernels.cache_clear()


def stand_in(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    module: Any = SimpleNamespace(reason=reason, __spec__=ModuleSpec("vitcop_cuda", None))
    monkeypatch.setitem(sys.modules, "vitcop_cuda", module)


def test_nothing_is_said_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    kernels.load_kernels()


def test_nothing_is_said_of_kernels_that_load(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "")
    kernels.load_kernels()


def test_kernels_that_do_not_load_are_missed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "undefined symbol")
    with pytest.warns(RuntimeWarning, match="undefined symbol; the reference kernels run"):
        kernels.load_kernels()
    kernels.load_kernels()
