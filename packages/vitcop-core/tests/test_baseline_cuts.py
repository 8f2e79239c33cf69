"""FastV's, PyramidDrop's and SparseVLM's cuts against their specifications as loops over tokens, in float64."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitcop_core import (
    DecoderCut,
    DecoderView,
    FastV,
    PromptView,
    PyramidDrop,
    Selection,
    SparseVLM,
)
from vitcop_core.methods._recycling import find_raters, recycled_from

Array = NDArray[Any]
CASES = 200
RECYCLE = DecoderCut(3, 2, "recycle", recycled=2, pack_positions=True)


def slow_top(scores: Array, count: int) -> list[int]:
    """The ``count`` largest, ties to the lower index, ascending."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])


def slow_raters(visual: Array, text: Array) -> list[bool]:
    relevance = np.zeros(len(text))
    for token in visual:
        products = [float(np.dot(word, token)) for word in text]
        weights = [math.exp(product - max(products)) for product in products]
        relevance += np.array(weights) / math.fsum(weights)
    relevance = (relevance / len(visual)).astype(np.float32).astype(np.float64)
    raters = [bool(value > math.fsum(relevance) / len(text)) for value in relevance]
    return raters if any(raters) else [True] * len(text)


def slow_recycle(hidden: Array, scores: Array, kept: list[int]) -> tuple[list[int], list[Array]]:
    """Centers and merged tokens, in the order in which they are appended."""
    dropped = [i for i in range(len(hidden)) if i not in kept]
    count = int(0.3 * len(dropped)) + 1
    best = sorted(sorted(dropped, key=lambda i: (-scores[i], i))[:count])
    clusters = int(count / 10) + 1
    exact = np.array([[math.dist(hidden[i], hidden[j]) / math.sqrt(hidden.shape[1]) for j in best] for i in best])
    near = np.sort(exact**2, axis=1)[:, :clusters]
    density = np.array([math.exp(-math.fsum(row) / clusters) for row in near], np.float32)
    distance = exact.astype(np.float32)
    delta = np.zeros(count, np.float32)
    for i in range(count):
        denser = [j for j in range(count) if density[j] > density[i] or (density[j] == density[i] and j < i)]
        delta[i] = min((distance[i, j] for j in denser), default=distance.max())
    importance = delta * density
    centers = sorted(range(count), key=lambda i: (-importance[i], i))[:clusters]
    members: list[list[int]] = [[center] for center in centers]
    for i in range(count):
        if i not in centers:
            nearest = min(range(clusters), key=lambda c: (distance[i, centers[c]], c))
            members[nearest].append(i)
    return [best[center] for center in centers], [hidden[[best[i] for i in group]].mean(0) for group in members]


def chosen(index: Tensor, size: int) -> list[int]:
    """A row of a selection, whose unused end must be ``size``."""
    row: list[int] = index.tolist()
    count = sum(i < size for i in row)
    assert row[count:] == [size] * (len(row) - count)
    return row[:count]


def random_scores(generator: torch.Generator, *shape: int, ties: bool) -> Tensor:
    if ties:
        return torch.randint(1, 5, shape, generator=generator).float() / 4
    return torch.rand(shape, generator=generator)


def random_states(generator: torch.Generator, *shape: int, ties: bool) -> Tensor:
    """Hidden states; with ties integers, of which many are at the same distance, and duplicates."""
    if not ties:
        return torch.randn(shape, generator=generator)
    states = torch.randint(-1, 2, shape, generator=generator).float()
    half = shape[1] // 2
    states[:, half : 2 * half] = states[:, :half]
    return states


class Sparse(NamedTuple):
    """A random case of SparseVLM."""

    view: DecoderView
    prompt: PromptView
    rows: Tensor
    lengths: list[int]
    words: list[int]


def sparse_case(seed: int) -> Sparse:
    generator = torch.Generator().manual_seed(seed)
    rows, ties = 1 + seed % 3, seed % 4 == 0
    lengths = torch.randint(6, 200 if seed % 7 == 0 else 60, (rows,), generator=generator).tolist()
    words = torch.randint(1, 9, (rows,), generator=generator).tolist()
    size, width = max(lengths), 6
    hidden = random_states(generator, rows, size, width, ties=ties)
    attention = random_scores(generator, rows, max(words), size, ties=ties)
    visual = random_states(generator, rows, size, width, ties=ties)
    text = random_states(generator, rows, max(words), width, ties=ties)
    prompt = PromptView(visual, torch.tensor(lengths), text, torch.tensor(words))

    def attention_of(raters: Tensor) -> Tensor:
        weights = raters.to(attention.dtype)
        mean: Tensor = (weights.unsqueeze(1) @ attention)[:, 0] / weights.sum(1, keepdim=True)
        return mean

    view = DecoderView(
        hidden=hidden,
        keys=torch.zeros(rows, 1, size, 2),
        labels=None,
        num_clusters=0,
        lengths=torch.tensor(lengths),
        attention=lambda: attention[:, -1],
        attention_of=attention_of,
        prompt=lambda: prompt,
    )
    return Sparse(view, prompt, attention, lengths, words)


def sparse_cut(seed: int, lengths: list[int]) -> tuple[DecoderCut, list[int]]:
    generator = torch.Generator().manual_seed(1000 + seed)
    keeps = [min(int(torch.randint(1, 40, (), generator=generator)), length - 1) for length in lengths]
    if seed % 5 == 0:
        keeps[-1] = lengths[-1]  # a row with nothing to cut
    recycled = [recycled_from(length - keep)[1] for length, keep in zip(lengths, keeps, strict=True)]
    return DecoderCut(3, max(keeps), "recycle", recycled=max(recycled), pack_positions=True), keeps


@pytest.mark.parametrize("method", [FastV(keep=1), PyramidDrop(ratio=0.5)], ids=["fastv", "pyramiddrop"])
def test_last_token_methods_keep_what_loops_keep(method: FastV | PyramidDrop) -> None:
    for seed in range(CASES):
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(2, 40, (1 + seed % 4,), generator=generator).tolist()
        keeps = [int(torch.randint(1, length + 1, (), generator=generator)) for length in lengths]
        scores = random_scores(generator, len(lengths), max(lengths), ties=seed % 2 == 0)
        worse = -scores
        given = (worse, scores) if isinstance(method, PyramidDrop) else (scores, worse)
        attention, own_attention = (lambda scores=part: scores for part in given)
        view = DecoderView(
            hidden=torch.zeros(len(lengths), max(lengths), 2),
            keys=torch.zeros(len(lengths), 1, max(lengths), 2),
            labels=None,
            num_clusters=0,
            lengths=torch.tensor(lengths),
            attention=attention,
            own_attention=own_attention,
        )
        selection = method.cut_decoder(DecoderCut(2, max(keeps), "last_token"), view, torch.tensor(keeps))
        for row, (length, keep) in enumerate(zip(lengths, keeps, strict=True)):
            expected = slow_top(scores[row, :length].double().numpy(), keep)
            assert chosen(selection.index[row], max(lengths)) == expected, seed


def test_sparsevlm_raters_are_those_of_loops() -> None:
    for seed in range(CASES):
        case = sparse_case(seed)
        raters = find_raters(case.prompt)
        for row, (length, words) in enumerate(zip(case.lengths, case.words, strict=True)):
            visual, text = case.prompt.visual[row, :length].double(), case.prompt.text[row, :words].double()
            assert raters[row, :words].tolist() == slow_raters(visual.numpy(), text.numpy()), seed
            assert not raters[row, words:].any()


def test_sparsevlm_keeps_and_recycles_what_loops_do() -> None:
    for seed in range(CASES):
        case = sparse_case(seed)
        cut, keeps = sparse_cut(seed, case.lengths)
        selection = SparseVLM(counts=(3, 2, 1)).cut_decoder(cut, case.view, torch.tensor(keeps))
        assert selection.appended is not None
        assert selection.appended_at is not None
        size = max(case.lengths)
        scores = case.view.attention_of(case.view.notes["raters"])
        for row, (length, keep) in enumerate(zip(case.lengths, keeps, strict=True)):
            own, hidden = scores[row, :length].numpy(), case.view.hidden[row, :length].double().numpy()
            kept = slow_top(own, keep)
            assert chosen(selection.index[row], size) == kept, seed
            centers, merged = slow_recycle(hidden, own, kept) if keep < length else ([], [])
            assert chosen(selection.appended_at[row], size) == centers, seed
            found = selection.appended[row].double().numpy()
            np.testing.assert_allclose(found[: len(merged)], np.array(merged).reshape(-1, hidden.shape[1]), atol=1e-6)
            assert not found[len(merged) :].any()


def test_sparsevlm_score_is_the_mean_over_raters() -> None:
    case = sparse_case(7)
    SparseVLM(counts=(3, 2, 1)).cut_decoder(RECYCLE, case.view)
    for row, words in enumerate(case.words):
        visual, text = case.prompt.visual[row, : case.lengths[row]], case.prompt.text[row, :words]
        raters = slow_raters(visual.double().numpy(), text.double().numpy())
        expected = case.rows[row, :words][torch.tensor(raters)].mean(0)
        torch.testing.assert_close(case.view.attention_of(case.view.notes["raters"])[row], expected)


def test_sparsevlm_finds_raters_once() -> None:
    case = sparse_case(8)
    asked: list[int] = []

    def prompt() -> PromptView:
        asked.append(1)
        return case.prompt

    view = replace(case.view, prompt=prompt)
    for layer in (3, 7, 16):
        SparseVLM(counts=(3, 2, 1)).cut_decoder(replace(RECYCLE, layer=layer), view)
    assert len(asked) == 1


def test_sparsevlm_without_padding_equals_rows_with_it() -> None:
    case = sparse_case(9)
    size = min(case.lengths)
    cut = replace(RECYCLE, keep=size // 2, recycled=recycled_from(size - size // 2)[1])
    whole = replace(case.view, hidden=case.view.hidden[:, :size], lengths=None)
    whole = replace(whole, attention_of=lambda raters: case.view.attention_of(raters)[:, :size], notes={})
    padded = replace(case.view, lengths=torch.full((len(case.lengths),), size), notes={})
    one = SparseVLM(counts=(3, 2, 1)).cut_decoder(cut, whole)
    other = SparseVLM(counts=(3, 2, 1)).cut_decoder(cut, padded, torch.full((len(case.lengths),), size // 2))
    assert torch.equal(one.index, other.index.clamp(max=size))
    assert one.appended is not None
    assert other.appended is not None
    assert torch.equal(one.appended, other.appended)


def test_sparsevlm_one_word_rates_alone() -> None:
    prompt = PromptView(torch.randn(1, 4, 3), None, torch.randn(1, 1, 3), None)
    assert find_raters(prompt).tolist() == [[True]]


def test_sparsevlm_gradients_reach_recycled_tokens() -> None:
    case = sparse_case(3)
    hidden = case.view.hidden.clone().requires_grad_()
    cut, keeps = sparse_cut(3, case.lengths)
    made = SparseVLM(counts=(3, 2, 1)).cut_decoder(cut, replace(case.view, hidden=hidden), torch.tensor(keeps)).appended
    assert made is not None
    made.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.any()


def test_views_say_what_they_do_not_offer(decoder_view: Callable[..., DecoderView]) -> None:
    with pytest.raises(NotImplementedError, match="does not offer"):
        PyramidDrop(ratio=0.5).cut_decoder(DecoderCut(2, 3, "last_token"), decoder_view([9], 2))


def test_recycled_counts_are_those_of_floats() -> None:
    for dropped in range(1, 5000):
        count = int(0.3 * dropped) + 1
        assert recycled_from(dropped) == (count, int(count / 10) + 1)
    assert recycled_from(0) == (0, 0)


def test_selection_of_a_cut_without_recycling_has_no_tokens_to_append() -> None:
    case = sparse_case(4)
    size = max(case.lengths)
    found = SparseVLM(counts=(3, 2, 1)).cut_decoder(DecoderCut(3, size, "recycle"), replace(case.view, lengths=None))
    assert isinstance(found, Selection)
    assert found.appended is None
    assert found.index.tolist() == [list(range(size))] * len(case.lengths)
