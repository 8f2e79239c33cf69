"""List what vitcop promises: every public name with its signature, and every option of the command line.

``python scripts/public_api.py`` writes the list to tests/public_api/current.txt. Public is what the pages in docs/api
name, and what the packages export. tests/test_public_api.py compares the list with the stored one, and with that of the
last release: CHANGELOG.md has to name what changed, and this prints what it does not name yet. The sources are read and
not run, except for those of the command line.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

import griffe
from typer.models import OptionInfo

from vitcop_llava.tools.cli import app

ROOT = Path(__file__).resolve().parent.parent
CURRENT = ROOT / "tests/public_api/current.txt"
RELEASED = ROOT / "tests/public_api/released.txt"
CHANGELOG = ROOT / "CHANGELOG.md"

PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/src/*/__init__.py"))

# Modules to run that are promised like commands. Each has a function ``parser``.
PROGRAMS = ("vitcop_vllm.bench",)

Api = dict[str, list[str]]
"""By name: what stands beside it on its line, then its parameters or options, one a line."""


@dataclass(frozen=True)
class Documented:
    """What one ``automodule`` of the pages names.

    Attributes:
        module: The module.
        members: Its members that are named one by one; None for all.
        excluded: Those that are left out.
    """

    module: str
    members: frozenset[str] | None
    excluded: frozenset[str]


def documented(root: Path) -> Iterator[Documented]:
    """Yield what the pages in docs/api name, then what the packages themselves export."""
    for page in sorted((root / "docs/api").glob("*.md")):
        for module, options in re.findall(r"automodule:: (\S+)\n((?: +:.*\n)*)", page.read_text(encoding="utf-8")):
            listed = {name: text.strip() for name, text in re.findall(r":([\w-]+):(.*)", options)}
            if "members" in listed:
                members = frozenset(listed["members"].split(", ")) if listed["members"] else None
                excluded = frozenset(listed.get("exclude-members", "").split(", "))
                yield Documented(module, members, excluded)
    for package in PACKAGES:
        yield Documented(package, None, frozenset())


def is_public(module: griffe.Module, member: griffe.Object | griffe.Alias) -> bool:
    """Return whether Sphinx lists a member: what ``__all__`` names, or else what the module itself defines and says."""
    if module.exports is not None:
        return member.name in module.exports
    if member.name.startswith("_") or member.is_alias or member.is_module:
        return False
    comment = module.lines[member.lineno - 2] if member.lineno is not None and member.lineno > 1 else ""
    return member.has_docstring or comment.startswith("#:")


def parameters_of(function: griffe.Function | griffe.Class) -> Iterator[str]:
    """Yield the parameters of a function, or of a class's constructor, with the marks that say how they are given."""
    kinds = griffe.ParameterKind
    last = None
    for number, parameter in enumerate(function.parameters):
        is_bound = function.is_class or (function.parent is not None and function.parent.is_class)
        if number == 0 and is_bound and parameter.name in ("self", "cls"):
            continue
        if last is kinds.positional_only and parameter.kind is not last:
            yield "/"
        if parameter.kind is kinds.keyword_only and last not in (kinds.keyword_only, kinds.var_positional):
            yield "*"
        stars = {kinds.var_positional: "*", kinds.var_keyword: "**"}.get(parameter.kind, "")
        annotation = "" if parameter.annotation is None else f": {parameter.annotation}"
        has_default = parameter.default is not None and not stars
        yield f"{stars}{parameter.name}{annotation}{f' = {parameter.default}' if has_default else ''}"
        last = parameter.kind


class Listing:
    """The public names of all packages, each described where it is documented first.

    Args:
        root: The repository.
    """

    def __init__(self, root: Path) -> None:
        folders = sorted((root / "packages").glob("*/src"))
        loader = griffe.GriffeLoader(search_paths=folders, allow_inspection=False)
        for package in PACKAGES:
            loader.load(package)
        self._modules = loader.modules_collection
        self._places: dict[str, str] = {}
        parts = [*documented(root)]
        public = [(part.module, member) for part in parts for member in self._members(part)]
        for module, member in public:
            self._places.setdefault(member.canonical_path, f"{module}.{member.name}")
        self.api: Api = {part.module: [""] for part in parts}
        for module, member in public:
            self._add(f"{module}.{member.name}", member)

    def _members(self, part: Documented) -> list[griffe.Object | griffe.Alias]:
        module = self._modules[part.module]
        named = part.members
        found = [
            member
            for name, member in module.members.items()
            if name not in part.excluded and (name in named if named is not None else is_public(module, member))
        ]
        # A function hides the module that it is named after and imported from.
        return [each.members.get(each.name, each) if each.is_module else each for each in found]

    def _add(self, name: str, member: griffe.Object | griffe.Alias) -> None:
        if name in self.api:
            return
        home = self._places[member.canonical_path]
        found = member.final_target if isinstance(member, griffe.Alias) else member
        if home != name:
            self.api[name] = [f" = {home}"]
        elif isinstance(found, griffe.Class):
            self._add_class(name, found)
        else:
            self._add_value(name, found)

    def _add_value(self, name: str, found: griffe.Object) -> None:
        if isinstance(found, griffe.Function):
            returned = "" if found.returns is None else f" -> {found.returns}"
            self.api[name] = [returned, *parameters_of(found)]
        else:
            annotation = getattr(found, "annotation", None)
            self.api[name] = ["" if annotation is None else f": {annotation}"]

    def _add_class(self, name: str, found: griffe.Class) -> None:
        """Add a class with its own members, and those that it has from a base which is not public."""
        bases = ", ".join(map(str, found.bases))
        fields = [*parameters_of(found)]
        self.api[name] = [f"({bases})" if bases else "", *fields]
        given = {field.partition(":")[0] for field in fields} if "dataclass" in found.labels else set()
        hidden = [base for base in reversed(found.mro()) if base.canonical_path not in self._places]
        for owner in (*hidden, found):
            for member in owner.members.values():
                own = member.final_target if isinstance(member, griffe.Alias) else member
                if not member.name.startswith("_") and member.name not in given:
                    self._add_value(f"{name}.{member.name}", own)


def options_of(command: Callable[..., Any]) -> Iterator[str]:
    """Yield the arguments and options of a command, each with its type and default."""
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        kind, *infos = get_args(hints[name]) or (hints[name],)
        for info in infos:  # none is given for what typer itself hands in
            given = [text for text in (info.default, *(info.param_decls or ())) if isinstance(text, str)]
            option = ", ".join(given) or f"--{name.replace('_', '-')}"
            metavar = f" {info.metavar}" if info.metavar else ""
            names = option + metavar if isinstance(info, OptionInfo) else name
            default = str(parameter.default) if isinstance(parameter.default, Path) else parameter.default
            shown = "" if default is parameter.empty else f" = {default!r}"
            yield f"{names}: {kind.__name__ if isinstance(kind, type) else kind}{shown}"


def options_of_parser(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the options of a program, each with its type and default."""
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            kind = action.type if action.choices is None else "|".join(map(str, action.choices))
            several = "" if action.nargs is None else f" {action.nargs}"
            named = kind.__name__ if isinstance(kind, type) else kind
            yield f"{', '.join(action.option_strings)}: {named}{several} = {action.default!r}"


def commands() -> Api:
    """Return the commands of ``vitcop`` and :data:`PROGRAMS`, each with its arguments and options."""
    assert app.registered_callback is not None
    named = [("vitcop", app.registered_callback.callback)]
    named += [
        (f"vitcop {info.name or each.__name__}", each) for info in app.registered_commands if (each := info.callback)
    ]
    programs = {f"python -m {name}": ["", *options_of_parser(import_module(name).parser())] for name in PROGRAMS}
    return {name: ["", *options_of(command)] for name, command in named if command is not None} | programs


def render(api: Api) -> str:
    """Return a list as text: names in their order, each with its parameters indented below it."""
    blocks = ("\n    ".join([name + api[name][0], *api[name][1:]]) for name in sorted(api))
    return "".join(f"{block}\n" for block in blocks)


def parse(text: str) -> Api:
    """Return the list that :func:`render` wrote; lines that begin with # are left out."""
    found: Api = {}
    block: list[str] = []
    for line in text.splitlines():
        if line.startswith(" "):
            block.append(line.strip())
        elif not line.startswith("#"):
            name = line if line.startswith(("vitcop ", "python -m ")) else re.match(r"[\w.]+", line)[0]  # type: ignore[index]
            block = found[name] = [line.removeprefix(name)]
    return found


def unreleased(changelog: str) -> str:
    """Return the section of the changelog that stands before that of the last release."""
    return changelog.partition("\n## Unreleased\n")[2].partition("\n## ")[0]


def needed(released: Api, current: Api) -> Iterator[tuple[str, str]]:
    """Yield what the changelog has to name: by the name that changed, its last word, and those of its parameters."""
    for name in sorted({*released, *current}):
        was, now = released.get(name), current.get(name)
        owner, _, word = re.match(r"(.*?)([ .]?)([^ .]+)$", name).groups()  # type: ignore[union-attr]
        is_whole = was is None or now is None
        if was == now or (is_whole and owner in {*released} ^ {*current}):
            continue  # a module or class that comes or goes takes its members with it
        yield name, word
        if was is not None and now is not None:
            named = (re.match(r"\**([\w-][^:,= ]*)", line) for line in {*was[1:]} ^ {*now[1:]})
            yield from ((name, found[1]) for found in named if found)


def unnamed(released: Api, current: Api, section: str) -> list[str]:
    """Return what changed since the release, and stands in no code span of a section of the changelog."""
    said = {word for span in re.findall(r"`([^`]+)`", section) for word in re.findall(r"-{0,2}\w[\w-]*", span)}
    return sorted({f"{name}: {word}" for name, word in needed(released, current) if word not in said})


if __name__ == "__main__":
    listed = Listing(ROOT).api | commands()
    CURRENT.write_text(render(listed), encoding="utf-8")
    missing = unnamed(
        parse(RELEASED.read_text(encoding="utf-8")), listed, unreleased(CHANGELOG.read_text(encoding="utf-8"))
    )
    if missing:
        print(f"{CHANGELOG.name} must name as code, in its unreleased section:", *missing, sep="\n  ")
