"""The pytest plugin: one run of the tests in one mode, and what came out of it as a file."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from transformers_suite.methods import CUTS, METHODS
from transformers_suite.outcomes import RunResult, worse
from transformers_suite.wrapping import Wrapper


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vitcop")
    group.addoption("--vitcop-mode", choices=list(METHODS), required=True, help="what models are pruned with")
    group.addoption("--vitcop-result", type=Path, required=True, help="the file to write")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Run(config), "vitcop-run")


class Run:
    """One run: in a process that runs tests it wraps the models, in the one that reports it collects the outcomes."""

    def __init__(self, config: pytest.Config) -> None:
        method = METHODS[config.getoption("--vitcop-mode")]
        self._config = config
        self._wrapper = None if method is None else Wrapper(method)
        self._before = 0
        self._counts = {"wrapped": Counter[str](), "left_alone": Counter[str](), "cuts": Counter[str]()}
        self._result = RunResult()
        if self._wrapper is not None:
            self._wrapper.install()

    def pytest_collection_finish(self) -> None:
        """Gives pruned models masks that show images whole.

        The testers' common mask shows one token of the first row, two of the second, and so on: a part of an image,
        which pruning refuses. No test is about that, and without this hardly one would get to what it is about.
        """
        module = sys.modules.get("tests.multimodal_tester")
        if module is not None and self._config.getoption("--vitcop-mode") == "pruned":
            module.MultiModalModelTester.create_attention_mask = whole_image_mask

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Makes a test the same in every mode, whatever ran before it: many leave their inputs to chance."""
        random.seed(0)
        torch.manual_seed(0)
        for name, module in list(sys.modules.items()):
            if name.startswith("tests.") and "global_rng" in vars(module):
                module.global_rng.seed(0)
        self._before = CUTS.total()

    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        CUTS["tests"] += CUTS.total() > self._before
        stained = [] if self._wrapper is None else self._wrapper.release()
        if stained:
            pytest.fail(f"hooks were left behind on {', '.join(stained)}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcome: str = report.outcome
        if hasattr(report, "wasxfail"):
            outcome = "xfailed" if report.skipped else "xpassed"
        is_part = hasattr(report, "context") or report.when != "call"  # a subtest, or what stands around the test
        if is_part and outcome == "passed":
            return
        if hasattr(report, "context") and outcome != "failed":
            return
        known = self._result.outcomes.get(report.nodeid)
        self._result.outcomes[report.nodeid] = worse(known, outcome)
        if outcome == "failed":
            crash = getattr(report.longrepr, "reprcrash", None)
            message = str(report.longrepr) if crash is None else crash.message
            self._result.messages.setdefault(report.nodeid, message[:1000])

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Takes the counts of a process that ran tests for this one."""
        self._add(getattr(node, "workeroutput", {}).get("vitcop", {}))

    def pytest_sessionfinish(self) -> None:
        own: dict[str, Counter[str]] = {"cuts": CUTS}
        if self._wrapper is not None:
            own |= {"wrapped": self._wrapper.wrapped, "left_alone": self._wrapper.left_alone}
        if hasattr(self._config, "workeroutput"):
            self._config.workeroutput["vitcop"] = {name: dict(counts) for name, counts in own.items()}
            return
        self._add(own)
        self._result.wrapped, self._result.left_alone = (dict(self._counts[n]) for n in ("wrapped", "left_alone"))
        self._result.cuts = dict(self._counts["cuts"])
        self._config.getoption("--vitcop-result").write_text(json.dumps(vars(self._result)))

    def _add(self, counts: dict[str, Any]) -> None:
        for name, more in counts.items():
            self._counts[name].update(more)


def whole_image_mask(tester: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """The testers' triangular mask, begun behind the image, which is where their prompts begin."""
    return torch.tril(torch.ones_like(input_ids), diagonal=tester.num_image_tokens)
