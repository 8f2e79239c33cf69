"""Start the ``vitcop`` command, or say what to install. Imports nothing that may be missing."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

NEEDS = ("matplotlib", "PIL", "rich", "tqdm", "typer")
"""What the extra ``tools`` installs, by the names that are imported."""


def main() -> None:
    """Run the command line of this process, or exit with code 2 where the extra ``tools`` is not installed."""
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        print(f'vitcop needs {", ".join(missing)}: pip install "vitcop-llava[tools]"', file=sys.stderr)
        sys.exit(2)
    import_module("vitcop_llava.tools.cli").main()
