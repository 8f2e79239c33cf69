"""One grammar for errors, read from the sources, so that no message escapes because no test provokes it.

"<name> must be <what>, got <value>", the name as the caller wrote it, and what to do about it after a semicolon.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(ROOT.glob("packages/*/src/**/*.py"))

# An argument, an option, a key of a file or what stands for one; then, where it helps, which file it names.
NAME = r'(?:--[\w-]*(?:\{\})?|"\w+"|[\w.]+(?:\[\{\}\])?(?:\.\.\.)?|\{\}(?:\[\{\}\])?)'
GRAMMAR = re.compile(rf"{NAME}(?:(?:, | and | or | ){NAME})*? must (?:not )?\S")
# What needs no value: what is left out, given or forbidden says all.
NO_VALUE = re.compile(r" must (?:not|be given|be left out)\b")
# Where an error's own message may stand in another.
PASSED_ON = re.compile(r"(?:.*: |[^:]* must |--method )?\{\}(?:; \{\})?")

#: Errors about an argument, beside those that derive from them in the packages.
ARGUMENTS = {"TypeError", "ValueError", "UserError", "FileNotFoundError", "PermissionError", "IsADirectoryError"}
#: Those whose message begins after "must", and is completed where they are caught.
FRAGMENTS = {"DamageError", "PictureError"}


def trees() -> dict[Path, ast.Module]:
    found = {path: ast.parse(path.read_text()) for path in SOURCES}
    assert len(found) > 150
    return found


TREES = trees()


def kinds() -> set[str]:
    """Every class of errors about arguments, by name."""
    found, size = set(ARGUMENTS), 0
    while size != len(found):
        size = len(found)
        for tree in TREES.values():
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef) and {ast.unparse(base) for base in node.bases} & found:
                    found.add(node.name)
    return found


KINDS = kinds()


def template(node: ast.expr) -> str | None:
    """A message with {} for what is filled in; None where it is not written out."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None


def caught(tree: ast.Module) -> dict[ast.AST, set[str]]:
    """By call, the names of errors of these kinds that are being handled around it."""
    found: dict[ast.AST, set[str]] = {}
    for node in ast.walk(tree):
        name, kind = None, None
        if isinstance(node, ast.ExceptHandler):
            name, kind = node.name, node.type
        elif isinstance(node, ast.FunctionDef) and node.args.args:
            name, kind = node.args.args[-1].arg, node.args.args[-1].annotation
        if name and kind and {word.id for word in ast.walk(kind) if isinstance(word, ast.Name)} <= {*KINDS, "OSError"}:
            for inner in ast.walk(node):
                found.setdefault(inner, set()).add(name)
    return found


def is_passed_on(node: ast.expr, names: set[str]) -> bool:
    """Whether a message is that of an error which was checked where it was made, behind a place or after "must"."""
    text = template(node)
    if text is not None and not PASSED_ON.fullmatch(text):
        return False
    parts = (
        [each.value for each in node.values if isinstance(each, ast.FormattedValue)]
        if isinstance(node, ast.JoinedStr)
        else [node]
    )
    if names & {word.id for part in parts for word in ast.walk(part) if isinstance(word, ast.Name)}:
        return True
    # A line's fault, or the answer of a child process, whose sources are among these.
    return bool(parts) and re.search(r"\.error$|\['error'\]$", ast.unparse(parts[-1])) is not None


def follows(message: str, kind: str) -> bool:
    """Whether a message follows the grammar."""
    if kind in FRAGMENTS:
        message = f"file must {message}"
    has_value = ", got " in message or NO_VALUE.search(message) is not None
    return GRAMMAR.match(message) is not None and has_value and not re.search(r"(?<!,) got\b|[.:] *$", message)


def deviating(tree: ast.Module) -> Iterator[tuple[int, str]]:
    handled = caught(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in KINDS:
            continue
        if len(node.args) > 1 and ast.unparse(node.args[0]).startswith(("errno.", "error.errno")):
            continue  # an error of the system: its number, the system's words, and the file
        given = node.args[0] if node.args else None
        for message in [given.body, given.orelse] if isinstance(given, ast.IfExp) else [given]:
            text = None if message is None else template(message)
            is_known = message is not None and is_passed_on(message, handled.get(node, set()))
            if not is_known and (text is None or not follows(text, node.func.id)):
                yield node.lineno, text or ast.unparse(node)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_message_names_the_argument_what_it_must_be_and_what_came(path: Path) -> None:
    assert not [*deviating(TREES[path])]


@pytest.mark.parametrize(
    "source",
    [
        'ValueError("model: is pruned already")',
        'ValueError(f"layers must be below {layers}; got {found}")',
        'ValueError("layers must be below 32")',
        'TypeError(f"expected a tensor, got {kind}")',
        "ValueError(message)",
        "ValueError()",
        'UserError(f"--out: {path} is there already")',
        'VideoError(f"path: {path} is truncated")',
        'PictureError("is damaged")',
    ],
)
def test_deviating_message_is_found(source: str) -> None:
    assert [*deviating(ast.parse(f"raise {source}"))]


@pytest.mark.parametrize(
    "source",
    [
        'ValueError(f"layers must be below {layers}, got {found}; leave them out")',
        'ValueError(f"questions[{number}] must not hold an image")',
        'UserError(f"--{option} must be given with --batch")',
        'PictureError("be a whole file, got half of one")',
    ],
)
def test_message_that_follows_is_accepted(source: str) -> None:
    assert not [*deviating(ast.parse(f"raise {source}"))]
