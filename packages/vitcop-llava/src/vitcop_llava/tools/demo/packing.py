"""Many questions about one image in one row, for training."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlavaProcessor

from vitcop_llava.tools.demo.questions import Question

IGNORED = -100
"""The label of places that nothing is learned from."""


class Packer:
    """Packs an image and its questions into one row, each question seeing the image and itself alone."""

    def __init__(self, processor: LlavaProcessor, visual_tokens: int) -> None:
        self._tokenizer = processor.tokenizer
        self._cache: dict[str, list[int]] = {}
        self._eos = self._tokenizer.eos_token_id
        self._opening: list[int] = self._tokenizer("USER:")["input_ids"]
        self.first_visual = len(self._opening)
        self.prefix = self._opening + [self._tokenizer.convert_tokens_to_ids("<image>")] * visual_tokens

    def _ids(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._cache[text]

    def row(self, questions: list[Question], told: str | None = None) -> NDArray[np.int64]:
        """Return ``[4, length]``: token, position, block (0 is the prefix) and label of every place.

        The questions are about an image, or with ``told`` about that text in its place.
        """
        prefix = self.prefix if told is None else self._opening + self._ids(f"{told}.")
        start = len(prefix)
        columns = [(token, place, 0, IGNORED) for place, token in enumerate(prefix)]
        for block, question in enumerate(questions, start=1):
            asked = self._ids(f"{question.text} ASSISTANT:")
            answer = [*self._ids(question.answer), self._eos]
            tokens = asked + answer[:-1]
            labels = [IGNORED] * (len(asked) - 1) + answer
            columns += [(t, start + k, block, label) for k, (t, label) in enumerate(zip(tokens, labels, strict=True))]
        return np.array(columns, dtype=np.int64).T

    def batch(self, rows: list[list[Question]], told: list[str] | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the tokens, positions and (shifted) labels ``[b, length]``, and the mask ``[b, 1, length,
        length]``.
        """
        packed = [self.row(row, None if told is None else told[index]) for index, row in enumerate(rows)]
        length = max(row.shape[1] for row in packed)
        table = np.zeros((4, len(rows), length), dtype=np.int64)
        table[2], table[3] = -1, IGNORED
        for index, row in enumerate(packed):
            table[:, index, : row.shape[1]] = row
        tokens, positions, blocks, labels = torch.from_numpy(table)
        same = blocks[:, :, None] == blocks[:, None, :]
        mask = (same | (blocks[:, None, :] == 0)) & torch.ones(length, length, dtype=torch.bool).tril()
        return tokens, positions, labels, mask[:, None]
