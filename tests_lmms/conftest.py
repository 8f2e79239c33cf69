"""The demo models, small random ones of other families, and tasks on local files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from small_checkpoints import save

from vitcop_llava.tools.lmms.prepare import prepare_clips, prepare_scenes
from vitcop_llava.tools.model.loading import Loaded, load


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def demo() -> Loaded:
    return load(device="cpu")


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Loaded]:
    """A small model of a family, loaded as the tools load it."""
    found: dict[str, Loaded] = {}

    def load_family(name: str) -> Loaded:
        if name not in found:
            found[name] = load(str(save(tmp_path_factory.mktemp(name), name)), device="cpu")
        return found[name]

    return load_family


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 questions about scenes, a few of them with choices, and two clips, as tasks."""
    path = tmp_path_factory.mktemp("tasks")
    assert prepare_scenes(path) == ["vitcop_scenes", "vitcop_scenes_choice"]
    choices = path / "vitcop_scenes_choice.jsonl"
    choices.write_text("".join(choices.read_text().splitlines(keepends=True)[:15]))
    assert prepare_clips(path, 2) == ["vitcop_clips"]
    return path


@pytest.fixture(scope="session")
def evaluate(folder: Path) -> Callable[..., dict[str, Any]]:
    """Runs tasks through lmms-eval's own entry, on models by their ``--model_args``."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)

    def run(
        arguments: str, *tasks: str, batch_size: int = 1, simple: bool = False, limit: int | None = None
    ) -> dict[str, Any]:
        found: dict[str, Any] = simple_evaluate(
            model="vitcop",
            model_args=arguments,
            tasks=[*tasks],
            batch_size=batch_size,
            limit=limit,
            device="cpu",
            task_manager=manager,
            force_simple=simple,
            bootstrap_iters=0,
        )
        return found

    return run


def answers_of(results: dict[str, Any]) -> dict[str, list[Any]]:
    """What the model gave for each question of each task: a text, or losses."""
    return {task: [sample["filtered_resps"] for sample in samples] for task, samples in results["samples"].items()}


@pytest.fixture(scope="session")
def given() -> Callable[[dict[str, Any]], dict[str, list[Any]]]:
    return answers_of
