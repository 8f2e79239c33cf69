"""Names of a package that are imported when first asked for: what only prints help must not wait for torch."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` for a package that imports its names when they are first asked for.

    Args:
        package: Its ``__name__``.
        homes: By full name of a module, the names that it holds. A module of the package can be asked for as well.
    """
    places = {name: home for home, names in homes.items() for name in names}
    modules = {home.removeprefix(f"{package}."): home for home in homes if home.startswith(f"{package}.")}

    def find(name: str) -> Any:
        if name in places:
            value = getattr(import_module(places[name]), name)
        elif name in modules:
            value = import_module(modules[name])
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        vars(sys.modules[package])[name] = value
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places})

    return find, names
