"""What the commands that run a model have in common: loading and pruning it, quietly, and what there is to note."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging import ERROR
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcop_llava.tools.cli.errors import UserError, mistakes
from vitcop_llava.tools.cli.output import print_note, progress
from vitcop_llava.tools.model.budget import Budget

if TYPE_CHECKING:
    from vitcop_core import Method
    from vitcop_llava import Pruner
    from vitcop_llava.tools.cli.media import Medium
    from vitcop_llava.tools.model.loading import Loaded

DEMO_NOTE = (
    "this is the demo model: it knows scenes of colored shapes such as `vitcop scene` draws, and no photographs; "
    "--model runs a real one"
)
VIDEO_DEMO_NOTE = (
    "this is the demo model for videos: it knows clips of colored shapes such as `vitcop scene --clip` draws, and no "
    "others; --model runs a real one"
)

_SETTINGS = re.compile("(retained_tokens|retention_ratio) must be")


@dataclass
class Notes:
    """Remarks of one command, in order."""

    found: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Add a remark, once."""
        if text not in self.found:
            self.found.append(text)

    def print(self) -> None:
        """Print them to stderr."""
        for text in self.found:
            print_note(text)


@contextmanager
def quiet(notes: Notes, *, keep_downloads: bool = False) -> Iterator[None]:
    """Silence transformers and Python's warnings for a while; what vitcop itself warns of goes into the notes.

    Args:
        notes: gets the warnings.
        keep_downloads: leave the hub's progress bars.
    """
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    from vitcop_llava.report import FeatureScaleWarning

    level, hub_level = logging.get_verbosity(), hub_logging.get_verbosity()
    bars, hub_bars = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", FeatureScaleWarning)
        logging.set_verbosity_error()
        hub_logging.set_verbosity(ERROR)
        logging.disable_progress_bar()  # the hub's too
        if hub_bars and keep_downloads:
            enable_progress_bars()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            hub_logging.set_verbosity(hub_level)
            if bars:
                logging.enable_progress_bar()
            (enable_progress_bars if hub_bars else disable_progress_bars)()
    for warning in caught:
        notes.add(str(warning.message))


def open_model(source: str | None, device: str, dtype: str, notes: Notes, *, for_video: bool = False) -> Loaded:
    """Load a model.

    Args:
        source: a folder or a hub id; None for the demo model.
        device: what to put it on.
        dtype: what it computes in.
        notes: get remarks.
        for_video: whether the demo model is that for videos.

    Raises:
        UserError: for one that cannot be used.
    """
    # Importing torch and transformers takes a second or two by itself.
    with progress("loading the libraries"):
        from vitcop_llava.tools.media.video_support import need_support
        from vitcop_llava.tools.model.loading import find_source, load
    options = {name: f"--{name}" for name in ("model", "device", "dtype")}
    with mistakes(options=options):
        if source is None and for_video:
            source = str(need_support().demo_folder)
        is_local = Path(find_source(source)).is_dir()
    bars = not is_local and sys.stderr.isatty()
    # Downloads show their own bars, which a spinner would garble.
    with quiet(notes, keep_downloads=bars), mistakes(options=options):
        if bars:
            print_note(f"looking for {source} on the hub; a first download takes a while")
            loaded = load(source, device=device, dtype=dtype)
        else:
            with progress("loading the model"):
                loaded = load(source, device=device, dtype=dtype)
    if loaded.is_demo:
        notes.add(DEMO_NOTE if loaded.parts.video is None else VIDEO_DEMO_NOTE)
    return loaded


def prepare_inputs(loaded: Loaded, media: Sequence[Medium], question: str, notes: Notes) -> Any:
    """Return the model's inputs; words that the model has no token for are noted.

    Raises:
        UserError: for a question that cannot be asked.
    """
    from vitcop_llava.tools.model.answer import prepare, unknown_words

    with mistakes():
        inputs = prepare(loaded, media, question)
    if unknown := unknown_words(loaded.processor.tokenizer, question):
        notes.add(f"words outside the model's vocabulary, which it cannot read: {', '.join(unknown)}")
    return inputs


def start_pruning(loaded: Loaded, method: Method, budget: Budget) -> Pruner:
    """Prune a model.

    Raises:
        UserError: for a budget that does not fit the model.
    """
    from vitcop_llava import prune

    # The model's parts were checked when it was loaded, so what is wrong now is the budget or another setting.
    try:
        return prune(loaded.model, method)
    except (ValueError, TypeError) as error:
        raise of_budget(budget, error) from error


@contextmanager
def budget_mistakes(budget: Budget) -> Iterator[None]:
    """Turn a budget that cannot be met for an image of this size into a mistake of the user's."""
    from vitcop_llava.hooks.planning import BudgetError

    try:
        yield
    except BudgetError as error:
        raise of_budget(budget, error) from error


def of_budget(budget: Budget, error: ValueError | TypeError) -> UserError:
    """Return the error of a method by the option's name: that of the budget where it is about one."""
    is_budget = _SETTINGS.search(str(error)) is not None
    return UserError(told_of_budget(budget, str(error)) if is_budget else f"--method: {error}")


def told_of_budget(budget: Budget, said: str) -> str:
    """Return an error's words, by the option's name where they are about a budget."""
    return f"--retain {budget}: {_SETTINGS.sub('it must be', said)}" if _SETTINGS.search(said) else said


def check_batch_size(loaded: Loaded, size: int) -> None:
    """Raise where questions cannot be asked so many at a time.

    Raises:
        UserError: where the tokenizer cannot pad.
    """
    if size > 1 and loaded.processor.tokenizer.pad_token is None:
        raise UserError(f"--batch-size must be 1, as the model's tokenizer has no padding token, got {size}")


def check_question(question: str, images: Sequence[Path]) -> None:
    """Raise for the ways in which images and question get mixed up.

    Raises:
        UserError: where the question is missing or is a file, or there is not an image.
    """
    is_file = _names_file(question)
    if not images:
        what = (
            f"the file {question} alone" if is_file else f"the question {question!r} alone" if question else "neither"
        )
        raise UserError(f"IMAGE... QUESTION must be at least one image or video, then the question, got {what}")
    if is_file:
        raise UserError(f"QUESTION must be a text, and come after images and videos, got the file {question}")
    if not question.strip():
        raise UserError("QUESTION must not be empty")


def _names_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a path, as questions may be
        return False


def model_summary(loaded: Loaded) -> dict[str, Any]:
    """Return what ran, for --json."""
    from vitcop_llava.tools.model.loading import is_packaged

    video = loaded.parts.video
    return {
        "source": "demo" if is_packaged(loaded.source) else loaded.source,
        "is_demo": loaded.is_demo,
        "class": type(loaded.model).__name__,
        "layers": loaded.parts.shape.num_layers,
        # Where images come in their own sizes, each has its own number.
        "visual_tokens_per_image": None if loaded.parts.squares else loaded.parts.visual_tokens,
        "visual_tokens_per_frame": None if video is None else video.clip(1).tokens,
        "device": str(loaded.device),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "attention": loaded.model.config._attn_implementation,
    }


def describe(loaded: Loaded) -> str:
    """Return what ran, for people."""
    summary = model_summary(loaded)
    name = "demo model" if summary["source"] == "demo" else summary["source"]
    most = "" if loaded.parts.anyres is None else "up to "
    each = f"{most}{summary['visual_tokens_per_image']} visual tokens an image"
    if loaded.parts.squares is not None:
        each = "visual tokens by the size of an image"
    if summary["visual_tokens_per_frame"] is not None:
        each += f", {summary['visual_tokens_per_frame']} a frame"
    return f"{name}: {summary['layers']} layers, {each}, {summary['dtype']} on {summary['device']}"
