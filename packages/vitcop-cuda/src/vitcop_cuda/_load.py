"""Loading the compiled module, and the reason where that does not work."""

import importlib
from typing import Any


def load() -> tuple[Any | None, str]:
    """Returns the module and an empty reason, or None and why there is none."""
    try:
        return importlib.import_module("vitcop_cuda._kernels"), ""
    except ModuleNotFoundError as error:
        if error.name != "vitcop_cuda._kernels":
            raise
        return None, "vitcop-cuda was installed without its compiled module"
    except ImportError as error:
        # A library that is missing, or a torch other than the one that the kernels were compiled against.
        return None, f"the compiled module does not load: {error}"
