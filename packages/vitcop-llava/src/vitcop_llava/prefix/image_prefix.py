"""One pruned image for many questions: the cache of a prompt up to its image's end, computed once.

Exact for methods whose cuts nothing after the image can change: in a causal model, keys and hidden states of an image
depend on what precedes them alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Self
from weakref import ref

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from vitcop_core import Method
from vitcop_core.shown import shown_settings
from vitcop_llava.compat import CACHE
from vitcop_llava.families import Parts, locate
from vitcop_llava.families.image_sizes import check_pixels
from vitcop_llava.prefix.store import Identity, StoredPrefix, identity_of, read_prefix, write_prefix
from vitcop_llava.pruner import finished_calls, prune, settings_for
from vitcop_llava.report import Report
from vitcop_llava.sequence.cache import PrunedLayer, grown_layers
from vitcop_llava.sequence.described import CacheState
from vitcop_llava.sequence.segment import on_device
from vitcop_llava.weights.fingerprint import check_same, mark

TokenIds = Sequence[int] | Tensor


class ImagePrefix:
    """A prompt up to the end of its images, pruned and computed: any number of questions can follow it.

    `encode_image` and `load` make it. It never changes, so threads may share it. The model that answers has to be
    pruned meanwhile, under any method, because the bare model refuses a pruned cache. It has to compute with the
    weights and adapters that the prefix was made with.

    Attributes:
        input_ids: ``[1, L]`` int64, its tokens with every placeholder.
        method: What it was pruned with.
        report: What was kept of its images.
    """

    def __init__(
        self, input_ids: Tensor, layers: Sequence[PrunedLayer], report: Report, identity: Identity, parts: Parts
    ) -> None:
        self.input_ids, self.method, self.report = input_ids, report.method, report
        self._layers, self._identity, self._image_token_id = tuple(layers), identity, parts.image_token_id
        self._base, self._words = ref(parts.base), parts.config.vocab_size

    def __repr__(self) -> str:
        images = sum(row.images for row in self.report.rows)
        counted = f"{images} image{'s' if images > 1 else ''}"
        return f"ImagePrefix({self.input_ids.shape[1]} tokens, {counted}, {shown_settings(self.method)})"

    def cache(self) -> DynamicCache:
        """Return a fresh cache that holds the prefix, to pass as ``past_key_values`` (``cache`` in later transformers).

        It takes as many rows as the first call brings (questions times beams), and serves one conversation. Its length
        is that of ``input_ids``, and ``generate`` takes ``input_ids`` that begin with the prefix's. If a model with
        other weights or adapters continues it, the first call raises an error.

        Raises:
            ValueError: The prefix keeps every token, so that the bare model can continue it unasked, and the model that
                made it now has other weights or adapters.
        """
        base, is_whole = self._base(), all(layer.columns is None for layer in self._layers)
        if is_whole and base is not None:
            check_same(self._identity, base, "prefix")
        cache = DynamicCache()
        state = CacheState()
        cache.layers = [layer.fork(state) for layer in self._layers]
        mark(cache, self._identity)
        return cache

    def inputs(self, questions: Sequence[TokenIds] | Tensor, *, pad_token_id: int = 0) -> dict[str, Any]:
        """Return the arguments with which ``generate`` answers ``questions``, one a row.

        Call ``model.generate(**prefix.inputs(questions))``. The answers begin at column
        ``inputs["input_ids"].shape[1]`` of what it returns. Shorter questions are padded between the prefix and their
        first token, and the padding is masked. So every row ends in its question's last token, and positions count on
        from the prefix.

        Args:
            questions: Token ids of each question, without padding: a list, ``[n]`` or ``[1, n]``. Either what follows
                the prefix, or the whole prompt, known by its image placeholders (one for each image, as a tokenizer
                leaves them, or all): it has to begin with the prefix, and only what follows is computed. Whole prompts
                are safer, because a tokenizer may split a text otherwise where it stands alone.
            pad_token_id: What stands in the padding; never attended to.

        Returns:
            ``input_ids`` and ``attention_mask``, ``[questions, L + longest]`` int64 on the prefix's device, and a fresh
            cache as ``past_key_values``, or as ``cache`` from transformers 5.24 on.

        Raises:
            TypeError: ``questions`` are not lists of token ids, or ``pad_token_id`` is not one.
            ValueError: There are none, one is empty or has another image, or a whole prompt begins otherwise; an id is
                none of the model's vocabulary; or as `cache` says.
        """
        if type(pad_token_id) is not int:
            raise TypeError(f"pad_token_id must be a token id, got {type(pad_token_id).__name__}")
        self._check_ids("pad_token_id", [pad_token_id])
        rows = [self._follow(number, _id_list(question)) for number, question in enumerate(questions)]
        for row in rows:
            self._check_ids("questions", row)
        if not rows:
            raise ValueError("questions must hold at least one question, got none")
        longest, length = max(map(len, rows)), self.input_ids.shape[1]
        device = self.input_ids.device
        ids = on_device([[pad_token_id] * (longest - len(row)) + row for row in rows], device)
        mask = on_device([[1] * length + [0] * (longest - len(row)) + [1] * len(row) for row in rows], device)
        return {
            "input_ids": torch.cat([self.input_ids.expand(len(rows), -1), ids], dim=1),
            "attention_mask": mask,
            CACHE: self.cache(),
        }

    def save(self, path: str | Path) -> None:
        """Write the prefix to a safetensors file, whole or not at all, with a digest of all that is in it.

        Args:
            path: Replaced if it is there. A symbolic link is followed; a new file gets the permissions that the umask
                allows.

        Raises:
            OSError: It cannot be written: there is no such folder, the name is none that a file can have, it is that of
                a folder, pipe or device, the disk is full, and so on.
        """
        write_prefix(path, StoredPrefix(self.input_ids, self._layers, self.report, self._identity))

    @classmethod
    @torch.inference_mode(False)
    def load(cls, path: str | Path, model: nn.Module, method: Method | None = None) -> Self:
        """Read a prefix onto the devices of ``model``, after checking that it is whole and belongs there.

        The model's class and configuration, samples of its weights, the adapters in effect, the dtype and the method
        have to be those that the prefix was made with.

        Args:
            path: A file that `save` wrote.
            model: The model that is to answer.
            method: What the prefix has to have been pruned with; None for what ``model`` is being pruned with now.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged, no prefix, no regular file or cannot be opened; it was made under another
                model, method or dtype (the message says what differs); or no method is given, and the model is not
                being pruned.
        """
        parts = locate(model)
        settings, _ = settings_for(parts, method)
        found = read_prefix(path, model, parts, settings)
        return cls(found.input_ids, found.layers, found.report, found.identity, parts)

    def _follow(self, number: int, ids: list[int]) -> list[int]:
        """Return what follows the prefix in question ``number``."""
        if self._image_token_id in ids:
            wanted = [token for token, _ in self._runs(self.input_ids[0].tolist())]
            found = list(islice(self._runs(ids), len(wanted)))
            if [token for token, _ in found] != wanted:
                raise ValueError(
                    f"questions[{number}] must begin with the tokens of the prefix, got another at token "
                    f"{_first_difference([token for token, _ in found], wanted)} (counting an image as one)"
                )
            ids = ids[found[-1][1] :]
        if self._image_token_id in ids:
            raise ValueError(
                f"questions[{number}] must not hold an image beside the prefix's; to bring another one into the "
                "conversation, pass pixel_values to generate beside past_key_values=prefix.cache()"
            )
        if not ids:
            raise ValueError(f"questions[{number}] must hold at least one token after the prefix, got none")
        return ids

    def _check_ids(self, name: str, ids: list[int]) -> None:
        if outside := [token for token in ids if not 0 <= token < self._words]:
            got = outside[0] if abs(outside[0]) < 2**63 else f"one of {outside[0].bit_length()} bits"
            raise ValueError(f"{name} must be ids from 0 to {self._words - 1}, got {got}")

    def _runs(self, ids: list[int]) -> Iterator[tuple[int, int]]:
        """Yield each token with the index after it; adjacent placeholders, however many, are one."""
        for index, token in enumerate(ids):
            is_inside = token == self._image_token_id and ids[index + 1 : index + 2] == [token]
            if not is_inside:
                yield token, index + 1


@torch.inference_mode(False)  # its tensors may be part of a call with gradients later
def encode_image(
    model: nn.Module,
    input_ids: Tensor,
    pixel_values: Tensor,
    *,
    image_sizes: Tensor | None = None,
    batch_num_images: Tensor | None = None,
    attention_mask: Tensor | None = None,
    method: Method | None = None,
) -> ImagePrefix:
    """Compute a prompt up to the end of its images once, pruned, for any number of questions.

    Tower, projector and image tokens never run again for it. Answers are those of asking each question from scratch,
    to rounding. Take the processor's output as it is:

    >>> first = processor(images=image, text="USER: <image>", return_tensors="pt")  # doctest: +SKIP
    >>> with vitcop_llava.prune(model, vitcop_llava.ViTCoP(retained_tokens=64)):  # doctest: +SKIP
    ...     prefix = vitcop_llava.encode_image(model, **first)
    ...     output = model.generate(**prefix.inputs(questions), max_new_tokens=64)

    Args:
        model: A model that `prune` takes, being pruned or not.
        input_ids: ``[1, L]`` int64, what all questions have in common: text, placeholders of one or more images, and
            more text if it is the same for all.
        pixel_values: The images, as the model takes them.
        image_sizes: Their sizes, for a model that takes them.
        batch_num_images: ``[1]``, their number, for a model that takes it: LLaVA-OneVision, where it is more than one.
        attention_mask: ``[1, L]``, all ones, as processors return it; or None.
        method: What to prune with, needed where ``model`` is not being pruned yet. It is then pruned for this call
            (without newline tokens).

    Returns:
        The prefix, on the devices of the model and without gradients.

    Raises:
        TypeError: The model is of another family, or an argument of the wrong type.
        ValueError: The model's positions have several axes; what the method does depends on the question; the prompt
            is no single row, is padded or holds no
            image; the images do not fit it; or the method is missing, or another than the model is being pruned with.
    """
    parts = locate(model)
    if parts.keeps_positions:
        raise ValueError(
            "model must number its tokens along one axis to encode an image once, got a "
            f"{type(parts.base).__name__}, which remembers for one prompt at a time how far its images move the "
            "positions of the text after them; ask each question together with its image"
        )
    settings, is_active = settings_for(parts, method)
    method = settings.method
    if method.cuts_depend_on_question:
        raise ValueError(
            f"method must have cuts that look at the image alone, got {shown_settings(method)}: what it keeps "
            "depends on the question, so one pruned image cannot serve several; use ViTCoP with saliency='key_norm'"
        )
    _check_prompt(input_ids, attention_mask, parts)
    check_pixels(pixel_values)
    cache = DynamicCache()
    more = {"image_sizes": image_sizes, "batch_num_images": batch_num_images}
    images = {"pixel_values": pixel_values} | {name: value for name, value in more.items() if value is not None}
    with nullcontext() if is_active else prune(model, method), torch.no_grad(), finished_calls() as calls:
        parts.base(input_ids=input_ids, use_cache=True, **{CACHE: cache}, **images)
    report = Report.of(calls[-1], method, parts)
    _check_positions(report)
    layers = grown_layers(cache, parts.shape.num_layers)
    for layer in layers:
        layer.entry_dropped = int(layer.entry_dropped)  # one number, whatever number of rows comes
    assert layers[0].keys is not None  # just filled
    identity = identity_of(model, parts, settings, layers[0].keys.dtype)
    return ImagePrefix(input_ids.clone(), layers, report, identity, parts)


def _check_positions(report: Report) -> None:
    """Raise where a cut numbers all tokens anew, the question's among them, which a prefix cannot know."""
    cuts = [cut for row in report.rows if row.plan is not None for cut in row.plan.decoder]
    if any(cut.reindex_positions for cut in cuts):
        raise ValueError(
            f"method must leave tokens at their positions, got {shown_settings(report.method)}, which moves image and "
            "question together before its last cut: an image pruned alone would give other answers; use "
            "deep_positions='kept'"
        )


def _check_prompt(input_ids: Any, attention_mask: Tensor | None, parts: Parts) -> None:
    if not isinstance(input_ids, Tensor) or input_ids.dtype != torch.int64:
        kind = input_ids.dtype if isinstance(input_ids, Tensor) else type(input_ids).__name__
        raise TypeError(f"input_ids must be an int64 tensor, got {kind}")
    if input_ids.ndim != 2 or input_ids.shape[0] != 1:
        raise ValueError(f"input_ids must be one row, [1, length], got shape {tuple(input_ids.shape)}")
    if not bool((input_ids == parts.image_token_id).any()):
        raise ValueError(f"input_ids must hold the placeholders of an image (token {parts.image_token_id}), got none")
    if attention_mask is not None and (attention_mask.shape != input_ids.shape or not bool(attention_mask.all())):
        raise ValueError(
            "attention_mask must be all ones, of the shape of input_ids, got "
            f"shape {tuple(attention_mask.shape)} with {int(attention_mask.sum())} ones: a prefix has no padding"
        )


def _id_list(question: Any) -> list[int]:
    ids = question.tolist() if isinstance(question, Tensor) else question
    if isinstance(question, Tensor) and question.ndim == 2 and question.shape[0] == 1:
        ids = question[0].tolist()
    is_list = isinstance(ids, Sequence) and not isinstance(ids, str)
    if not is_list or not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        kind = f"a tensor of shape {tuple(question.shape)}" if isinstance(question, Tensor) else type(question).__name__
        raise TypeError(f"questions must be a list with a list of token ids for each question, got {kind} in it")
    return list(ids)


def _first_difference(found: list[int], wanted: list[int]) -> int:
    pairs = zip(found, wanted, strict=False)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), len(found))
