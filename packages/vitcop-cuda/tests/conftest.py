"""Options, and the backends as fixtures: what is in support/ is shared by all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_backends import BACKENDS, Backend, load_host_operators, load_kernels
from kernel_cases import OPERATORS


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vitcop-cuda")
    group.addoption("--require-cuda", action="store_true", help="fail where a test finds no GPU, instead of skipping")
    group.addoption(
        "--backend", choices=[backend.name for backend in BACKENDS], help="run the tests of this backend alone"
    )
    group.addoption("--sanitize", choices=["address"], help="build the C++ with AddressSanitizer and UBSan first")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what runs on another backend than the one asked for, and what runs on none."""
    name = config.getoption("--backend")
    if name is None:
        return
    chosen = [item for item in items if isinstance(item, pytest.Function) and name in _backends_of(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def _backends_of(item: pytest.Function) -> list[str]:
    given = item.callspec.params.values() if hasattr(item, "callspec") else ()
    named = ["cuda"] if "cuda" in item.fixturenames else []
    return named + [each.name for each in given if isinstance(each, Backend)]


@pytest.fixture(scope="session")
def make_ready(request: pytest.FixtureRequest) -> Callable[[Backend], Backend]:
    """Builds or loads what a backend needs, once; skips where it cannot run."""
    loaded: set[str] = set()
    sanitize = request.config.getoption("--sanitize") is not None

    def ready(backend: Backend) -> Backend:
        if backend.device == "cuda" and not torch.cuda.is_available():
            if request.config.getoption("--require-cuda"):
                pytest.fail("--require-cuda was given, and torch finds no GPU")
            pytest.skip("torch finds no GPU")
        if backend.namespace not in loaded:
            loaded.add(backend.namespace)
            if backend.namespace == "vitcop":
                assert load_kernels(sanitize=sanitize) == ""
            else:
                load_host_operators(sanitize=sanitize)
                loaded.update({"vitcop_lines", "vitcop_threads"})
        key = "CUDA" if backend.device == "cuda" else "CPU"
        for op in OPERATORS:  # what runs is a kernel, and never the reference
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"{backend.namespace}::{op}", key)
        return backend

    return ready


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request: pytest.FixtureRequest, make_ready: Callable[[Backend], Backend]) -> Backend:
    return make_ready(request.param)


@pytest.fixture(params=[b for b in BACKENDS if b.namespace == "vitcop"], ids=lambda backend: backend.name)
def kernels(request: pytest.FixtureRequest, make_ready: Callable[[Backend], Backend]) -> Backend:
    """The backends that users run."""
    return make_ready(request.param)


@pytest.fixture
def device_lines(make_ready: Callable[[Backend], Backend]) -> tuple[Backend, Backend]:
    """The device's lines on the host, with one thread and with several."""
    return make_ready(BACKENDS[1]), make_ready(BACKENDS[2])
