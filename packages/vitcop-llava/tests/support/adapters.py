"""What tests of transformers' own adapters need."""

from __future__ import annotations

import peft
import pytest
import transformers
from packaging.version import Version
from transformers.integrations.peft import MIN_PEFT_VERSION

by_transformers = pytest.mark.skipif(
    Version(peft.__version__) < Version(MIN_PEFT_VERSION),
    reason=f"transformers {transformers.__version__} takes PEFT from {MIN_PEFT_VERSION} on, not {peft.__version__}",
)
