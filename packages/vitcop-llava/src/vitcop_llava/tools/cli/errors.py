"""What ends a command: exit code 2 for the user's mistakes, 1 for failures, and no traceback without --debug."""

from __future__ import annotations

import errno
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from vitcop_llava.tools.cli.output import OutputError, one_line, print_error, print_json, silence_stdout

MISTAKE, FAILURE = 2, 1


class UserError(Exception):
    """Something that the user gave cannot be used; the message names it, what was expected and what came."""


# What a caller can mend by naming another file; a full disk is none of it.
_CALLERS = frozenset(
    getattr(errno, name)
    for name in "EACCES EEXIST EAGAIN EINVAL EISDIR ELOOP ENAMETOOLONG ENOENT ENOTDIR EPERM EROFS".split()
)


def cannot_write(option: str, path: Path, error: OSError) -> Exception:
    """Return what to raise where ``path``, which ``option`` names, could not be written.

    Returns:
        A `UserError` where another name would help, and otherwise an `OutputError`.
    """
    if isinstance(error, FileExistsError):
        return UserError(f"{option} must be a new file, got {path}; --force overwrites it")
    said = f"{path}: {error.strerror or error}"
    if error.errno in _CALLERS:
        return UserError(f"{option} must be a file that can be written, got {said}")
    return OutputError(f"{option}: cannot write {said}")


# Of names that not even a look at whether there is such a file is allowed for.
_REFUSED_NAMES = frozenset({errno.ENAMETOOLONG, errno.EACCES, errno.EPERM})


@contextmanager
def mistakes(about: str = "", options: Mapping[str, str] | None = None) -> Iterator[None]:
    """Turn a ``ValueError`` or ``TypeError`` inside into a mistake of the user's.

    Args:
        about: the argument, where the message does not name it.
        options: by the names that messages have for arguments, those of the options that they are given by.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UserError(f"{about}: {error}" if about else _by_options(error, options or {})) from error


def _by_options(error: Exception, options: Mapping[str, str]) -> str:
    """Return an error's words with options in place of arguments: at the beginning, and where one is spoken of. Values,
    such as the names of folders, stay as they are.
    """
    said = str(error)
    for name, option in options.items():
        said = re.sub(rf"^{name}\b|(?<= within ){name}\b|(?<= larger ){name}\b", option, said)
    return said


class CommandGroup(TyperGroup):
    """A group of commands that all end as this module says, also when their arguments cannot be parsed."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line and exit."""
        given = list(sys.argv[1:] if args is None else args)
        flags = given[: given.index("--")] if "--" in given else given
        as_json, debug = "--json" in flags, "--debug" in flags
        try:
            # typer prints its own errors, for people; with --json they come here.
            code = super().main(
                given, prog_name, complete_var, standalone_mode and not as_json, windows_expand_args, **extra
            )
        except BrokenPipeError:  # whoever read the output has what they wanted
            silence_stdout()
            code = FAILURE
        except Exception as error:
            if debug:
                traceback.print_exc()
            code = _report(error, as_json, debug)
        sys.exit(code)

    def invoke(self, ctx: Any) -> Any:
        """Run a command. Where a value is refused, the message says which: not every version of typer does."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            given = getattr(error.__cause__, "errors", None)
            if hasattr(error, "param") and hasattr(error, "message") and callable(given):
                error.message = f"{error.message}, got {given()[0]['input']}"
            raise


def _report(error: Exception, as_json: bool, debug: bool) -> int:
    """Print an error, on stderr where stdout may be what failed; returns the exit code."""
    # typer's errors are click's, and by version it brings its own click, so they are known by what they offer.
    parsing = getattr(error, "format_message", None)
    if parsing is not None:
        message, code = str(parsing()), int(getattr(error, "exit_code", MISTAKE))
    elif isinstance(error, UserError):
        message, code = str(error), MISTAKE
    elif isinstance(error, OSError) and error.errno in _REFUSED_NAMES and error.filename is not None:
        message = f"path must be a name that the system takes, got {error.filename}: {error.strerror}"
        code = MISTAKE
    elif type(error).__module__.startswith("vitcop_"):  # our own failures say what they are
        message, code = str(error), FAILURE
    else:
        message, code = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__, FAILURE
    if as_json and not isinstance(error, OutputError):
        print_json({"error": one_line(message), "exit_code": code})
    else:
        hint = "" if debug or code == MISTAKE else " (--debug shows where)"
        print_error(message + hint)
    return code
