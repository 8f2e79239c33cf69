"""The one list of operators and inputs that every backend is checked on against the references of vitcop-core."""

from __future__ import annotations

from typing import Any

import torch
from kernel_golden import GOLDEN_CASES
from kernel_inputs import Arguments, Case, Draw, in_cache, misaligned, rows, spoiled_where, strided
from torch import Tensor

ONE = (torch.float32,)
NAN, INF = float("nan"), float("inf")
LENGTHS, COUNTS = rows(23, 0, 14, 2), rows(5, 3, 2, 4)


def _attention(draw: Draw, batch: int, heads: int, tokens: int, width: int) -> tuple[Tensor, Tensor]:
    return draw.normal(batch, heads, width), draw.normal(batch, heads, tokens, width, scale=3)


def _attention_in_cache(draw: Draw) -> Arguments:
    query, keys = _attention(draw, 2, 3, 37, 8)
    return strided(query), in_cache(keys), 0.35


def _attention_expanded(draw: Draw) -> Arguments:
    query, keys = _attention(draw, 1, 3, 37, 8)
    return query.expand(3, -1, -1), keys.expand(3, -1, -1, -1), 0.35


CLS_SALIENCY = [
    Case("cls_saliency", "random", lambda d: (*_attention(d, 2, 3, 50, 8), 0.35)),
    Case("cls_saliency", "clip", lambda d: (*_attention(d, 2, 16, 577, 64), 0.125), is_large=True),
    Case("cls_saliency", "narrow", lambda d: (*_attention(d, 2, 3, 50, 1), 0.35)),
    Case("cls_saliency", "saturated", lambda d: (*_attention(d, 2, 3, 50, 8), 20.0), ONE),
    Case("cls_saliency", "equal", lambda d: (d.normal(2, 3, 8), d.normal(2, 3, 1, 8).expand(-1, -1, 9, -1), 0.35)),
    Case("cls_saliency", "one token", lambda d: (*_attention(d, 2, 3, 1, 8), 0.35)),
    Case("cls_saliency", "two tokens", lambda d: (*_attention(d, 2, 3, 2, 8), 0.35)),
    Case("cls_saliency", "many heads", lambda d: (*_attention(d, 2, 11, 300, 16), 0.35), ONE, is_large=True),
    Case("cls_saliency", "wide heads", lambda d: (*_attention(d, 1, 2, 40, 272), 0.06)),
    Case("cls_saliency", "in cache", _attention_in_cache),
    Case("cls_saliency", "expanded", _attention_expanded),
]


def _all_attention(draw: Draw, batch: int, heads: int, tokens: int, width: int) -> tuple[Tensor, Tensor]:
    return draw.normal(batch, heads, tokens, width), draw.normal(batch, heads, tokens, width, scale=3)


def _tokens_spoiled(draw: Draw) -> Arguments:
    states = _all_attention(draw, 4, 3, 23, 8)
    spoiled = (spoiled_where(part.transpose(1, 2), LENGTHS, NAN).transpose(1, 2) for part in states)
    return *spoiled, 0.35, LENGTHS


def _received(name: str, batch: int, heads: int, tokens: int, width: int, *more: Any, **how: Any) -> Case:
    given = more or (0.35,)
    return Case("received_attention", name, lambda d: (*_all_attention(d, batch, heads, tokens, width), *given), **how)


RECEIVED_ATTENTION = [
    _received("random", 2, 3, 50, 8),
    _received("siglip", 1, 4, 300, 72, 0.118, is_large=True),
    _received("clip", 1, 2, 577, 64, 0.125, is_large=True, dtypes=ONE),
    _received("narrow", 2, 3, 50, 1),
    _received("saturated", 2, 3, 50, 8, 20.0, dtypes=ONE),
    _received("no scale", 2, 3, 50, 8, 0.0, dtypes=ONE),
    _received("one token", 2, 3, 1, 8),
    _received("two tokens", 2, 3, 2, 8),
    *(_received(f"{n} tokens", 1, 2, n, 40, dtypes=(torch.float32, torch.bfloat16)) for n in (64, 65, 129)),
    _received("wide heads", 1, 2, 40, 272, 0.06),
    _received("odd width", 1, 2, 70, 37),
    _received("ragged", 4, 3, 23, 8, 0.35, LENGTHS),
    _received("ragged tiles", 3, 2, 150, 12, 0.35, rows(150, 64, 65)),
    _received("empty", 4, 3, 23, 8, 0.35, rows(0, 0, 0, 0)),
    Case("received_attention", "ragged, spoiled", _tokens_spoiled),
    Case("received_attention", "strided", lambda d: (*map(strided, _all_attention(d, 2, 3, 23, 8)), 0.35)),
    Case("received_attention", "in cache", lambda d: (*map(in_cache, _all_attention(d, 2, 3, 37, 8)), 0.35)),
    Case(
        "received_attention",
        "expanded",
        lambda d: (*(t.expand(3, -1, -1, -1) for t in _all_attention(d, 1, 3, 37, 8)), 0.35, rows(37, 9, 1)),
    ),
    Case("received_attention", "equal", lambda d: (0 * d.normal(2, 3, 9, 8), d.normal(2, 3, 9, 8), 0.35)),
]

KEY_NORM = [
    Case("key_norm", "random", lambda d: (d.normal(4, 3, 23, 8),)),
    Case("key_norm", "llava", lambda d: (d.normal(1, 32, 172, 128),), is_large=True),
    Case("key_norm", "one number", lambda d: (d.normal(2, 1, 5, 1),)),
    Case("key_norm", "odd width", lambda d: (d.normal(2, 3, 5, 37),)),
    Case("key_norm", "one token", lambda d: (d.normal(2, 3, 1, 8),)),
    Case("key_norm", "zeros", lambda d: (0 * d.normal(2, 3, 5, 8),)),
    Case("key_norm", "large", lambda d: (d.normal(2, 3, 5, 8, scale=1e4),)),
    Case("key_norm", "overflowing squares", lambda d: (d.normal(2, 3, 5, 8, scale=1e25),), ONE),
    Case("key_norm", "tiny", lambda d: (d.normal(2, 3, 5, 8, scale=3e-7),)),
    Case("key_norm", "packs that do not start at words", lambda d: (misaligned(d.normal(2, 3, 23, 16)),)),
    Case("key_norm", "in cache", lambda d: (in_cache(d.normal(2, 3, 23, 8)),)),
    Case("key_norm", "strided", lambda d: (strided(d.normal(2, 3, 23, 8)),)),
    Case("key_norm", "heads last", lambda d: (d.normal(2, 8, 23, 3).transpose(1, 3),)),
    Case("key_norm", "expanded", lambda d: (d.normal(1, 3, 23, 8).expand(3, -1, -1, -1),)),
    Case("key_norm", "NaN", lambda d: (d.normal(2, 3, 5, 8).masked_fill(d.uniform(2, 3, 5, 8) < 0.05, NAN),)),
]


def _special(draw: Draw, *shape: int) -> Tensor:
    """NaN, both infinities, both zeros and a few equal numbers."""
    table = torch.tensor([NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0]).to(draw.dtype)
    return table[draw.integers(len(table), *shape)]


def _top_of_many(tokens: int) -> Case:
    return Case("top_tokens", f"{tokens} tokens", lambda d: (d.lattice(1, tokens, steps=99), 9), ONE, is_large=True)


def _tops(name: str, smallest: bool) -> list[Case]:
    def case(what: str, make: Any, large: bool = False) -> Case:
        return Case("top_tokens", f"{what}, {name}", make, is_large=large)

    return [
        case("random", lambda d: (d.normal(4, 23), 5, smallest)),
        case("tied", lambda d: (d.lattice(4, 23), 9, smallest)),
        case("equal", lambda d: (0 * d.normal(2, 300), 257, smallest)),
        case("special", lambda d: (_special(d, 4, 40), 20, smallest)),
        case("all", lambda d: (d.normal(2, 23), 23, smallest)),
        case("one token", lambda d: (d.normal(2, 1), 1, smallest)),
        case("two tokens", lambda d: (d.lattice(9, 2), 1, smallest)),
        case("three tokens", lambda d: (d.lattice(9, 3), 2, smallest)),
        case("large", lambda d: (d.normal(2, 2880), 320, smallest), True),
        case("ragged", lambda d: (d.lattice(4, 23), 5, smallest, LENGTHS, COUNTS)),
        case("lengths", lambda d: (spoiled_where(d.lattice(4, 23), LENGTHS, NAN), 5, smallest, LENGTHS)),
        case("counts", lambda d: (d.lattice(4, 23), 5, smallest, None, rows(0, 5, 1, 3))),
        case("special, ragged", lambda d: (_special(d, 4, 23), 5, smallest, LENGTHS, COUNTS)),
        case("strided", lambda d: (strided(d.normal(4, 23)), 5, smallest, strided(LENGTHS), strided(COUNTS))),
        case("transposed", lambda d: (d.normal(23, 4).T, 5, smallest)),
        case("expanded", lambda d: (d.normal(1, 23).expand(4, -1), 5, smallest, LENGTHS)),
    ]


TOP_TOKENS = [
    *_tops("largest", False),
    *_tops("smallest", True),
    # Around what a GPU's block puts in order by counting, by either of its sorts, and by counting again.
    *map(_top_of_many, (256, 257, 1024, 1025, 4096, 4097)),
]


def _random(draw: Draw, batch: int = 4, tokens: int = 23, width: int = 6) -> tuple[Tensor, Tensor]:
    return draw.normal(batch, tokens, width, scale=4), draw.uniform(batch, tokens, 2)


def _tied(draw: Draw, tokens: int = 30, side: int = 6) -> tuple[Tensor, Tensor]:
    return 2 * draw.lattice(4, tokens, 3, steps=1), draw.grid(4, side, tokens)


def _duplicated(draw: Draw) -> tuple[Tensor, Tensor]:
    features = draw.normal(2, 23, 200, scale=5, around=100)
    return torch.cat([features, features[:, :12]], 1), torch.zeros(2, 35, 2)


def _collinear(draw: Draw) -> tuple[Tensor, Tensor]:
    steps = draw.integers(12, 3, 25, 1).to(draw.dtype)
    return steps * draw.lattice(1, 1, 7), draw.grid(3, 5, 25)


def _apart(draw: Draw) -> tuple[Tensor, Tensor]:
    """Groups so far from each other that no density comes from another group."""
    features, positions = _random(draw)
    return features + 1000 * draw.integers(3, 4, 23, 1).to(draw.dtype), positions


def _spoiled(draw: Draw) -> Arguments:
    features, positions = _random(draw)
    return spoiled_where(features, LENGTHS, NAN), spoiled_where(positions, LENGTHS, NAN), 5, 8.0, 0.6, LENGTHS, COUNTS


def _cutoffs(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32)


def _many_with_cutoffs(draw: Draw) -> Arguments:
    return *_random(draw, 2, 257, 6), 9, 1.0, 0.3, rows(257, 100), None, _cutoffs(3.0, 9.0)


def _few(tokens: int, threshold: float) -> list[Case]:
    kind = f"{tokens} tokens, tau {threshold:g}"
    return [
        Case("vic", f"{kind}, random", lambda d: (*_random(d, 3, tokens, 4), 1, 8.0, threshold)),
        Case("vic", f"{kind}, equal", lambda d: (0 * d.normal(3, tokens, 4), d.grid(3, 2, tokens), 1, 8.0, threshold)),
        Case("vic", f"{kind}, all centers", lambda d: (*_random(d, 3, tokens, 4), tokens, 8.0, threshold)),
    ]


VIC = [
    Case("vic", "random", lambda d: (*_random(d), 5)),
    Case("vic", "wide", lambda d: (*_random(d, 2, 172, 1024), 13, 100.0), is_large=True),
    Case("vic", "tied", lambda d: (*_tied(d), 4, 3.0, 0.3)),
    Case("vic", "tied, one panel and one more", lambda d: (*_tied(d, 36), 9, 3.0, 0.3)),
    Case("vic", "duplicated", lambda d: (*_duplicated(d), 3, 100.0)),
    Case("vic", "equal", lambda d: (0 * d.normal(2, 130, 4), d.grid(2, 12, 130), 7)),
    Case("vic", "collinear", lambda d: (*_collinear(d), 6, 5.0, 0.45)),
    Case("vic", "nothing near", lambda d: (*_random(d), 5, 8.0, 1e-9)),
    Case("vic", "nothing near, tied", lambda d: (*_tied(d), 5, 8.0, 1e-9)),
    Case("vic", "all near", lambda d: (*_random(d), 5, 8.0, 10.0)),
    Case("vic", "threshold on the grid", lambda d: (*_tied(d), 5, 2.0, 1 / 6)),
    Case("vic", "no density", lambda d: (*_random(d), 5, 1e-3, 0.6)),
    Case("vic", "groups apart", lambda d: (*_apart(d), 5), (torch.float32, torch.float64)),
    Case("vic", "far from the origin", lambda d: (d.normal(2, 23, 6, around=1e4), d.uniform(2, 23, 2), 5), ONE),
    Case("vic", "one center", lambda d: (*_random(d), 1)),
    Case("vic", "all centers", lambda d: (*_random(d), 23)),
    Case("vic", "ragged", lambda d: (*_random(d), 5, 8.0, 0.6, LENGTHS, COUNTS)),
    Case("vic", "ragged, spoiled", _spoiled),
    Case("vic", "ragged, tied", lambda d: (*_tied(d, 23), 5, 3.0, 0.3, LENGTHS, COUNTS)),
    Case("vic", "cutoffs", lambda d: (*_random(d), 5, 1.0, 0.6, LENGTHS, None, _cutoffs(2.0, 8.0, 1.2e-38, 5.0))),
    Case("vic", "cutoffs, strided", lambda d: (*_tied(d), 5, 1.0, 0.6, None, None, strided(_cutoffs(2, 8, 0.5, 50)))),
    Case(
        "vic", "cutoffs of double", lambda d: (*_random(d), 5, 1.0, 0.6, None, None, _cutoffs(2, 8, 1, 5).double()), ONE
    ),
    Case("vic", "257 tokens, cutoffs", _many_with_cutoffs, ONE, is_large=True),
    Case("vic", "counts", lambda d: (*_random(d), 5, 8.0, 0.6, None, COUNTS)),
    Case("vic", "empty", lambda d: (*_random(d), 5, 8.0, 0.6, rows(0, 0, 0, 0))),
    Case("vic", "panels, ragged", lambda d: (*_random(d, 3, 150, 5), 9, 8.0, 0.4, rows(150, 64, 65))),
    Case("vic", "strided", lambda d: (*map(strided, _random(d)), 5)),
    Case("vic", "tokens before rows", lambda d: (d.normal(23, 4, 6, scale=4).transpose(0, 1), d.uniform(4, 23, 2), 5)),
    Case("vic", "expanded", lambda d: (*(t.expand(3, -1, -1) for t in _random(d, 1)), 5, 8.0, 0.6, rows(23, 9, 1))),
    Case("vic", "one feature", lambda d: (*_random(d, 2, 23, 1), 5)),
    # The most tokens that one kernel clusters after the product, and one more.
    Case("vic", "256 tokens", lambda d: (*_tied(d, 256, 17), 9, 3.0, 0.3), ONE, is_large=True),
    Case("vic", "257 tokens", lambda d: (*_tied(d, 257, 17), 9, 3.0, 0.3, rows(257, 256, 9, 0)), ONE, is_large=True),
    Case("vic", "half positions", lambda d: (d.normal(2, 23, 6), d.uniform(2, 23, 2).half(), 5), ONE),
    Case("vic", "n = 2880", lambda d: (d.normal(1, 2880, 64, scale=2), d.grid(1, 54, 2880), 173), ONE, is_large=True),
    *(case for tokens in (1, 2, 3) for threshold in (1e-9, 0.6) for case in _few(tokens, threshold)),
]


def _groups(draw: Draw, clusters: int = 4, batch: int = 4, tokens: int = 23, width: int = 6) -> Arguments:
    labels = draw.integers(clusters, batch, tokens)
    return draw.normal(batch, tokens, width), labels, draw.uniform(batch, tokens)


def _pruned(name: str, budget: int, clusters: int, *more: Any, **sizes: int) -> Case:
    return Case("co_prune", name, lambda d: (*_groups(d, clusters, **sizes), budget, clusters, *more))


def _pruned_tied(tokens: int) -> Case:
    def make(draw: Draw) -> Arguments:
        hidden, labels, _ = _groups(draw, 40, 1, tokens)
        return hidden, labels, draw.lattice(1, tokens, steps=20).float(), 90, 40

    return Case("co_prune", f"{tokens} tokens, tied", make, ONE, is_large=True)


def _skewed(draw: Draw) -> Arguments:
    """One large cluster and many small ones: the left-over takes several passes."""
    labels = (12 * draw.uniform(4, 60) ** 5).long()
    return draw.normal(4, 60, 3), labels, draw.lattice(4, 60).float(), 37, 12


def _with_norms(draw: Draw, norms: Tensor, budget: int) -> Arguments:
    hidden, labels, _ = _groups(draw, batch=norms.shape[0], tokens=norms.shape[1])
    return hidden, labels, norms, budget, 4


def _spoiled_groups(draw: Draw) -> Arguments:
    hidden, labels, norms = _groups(draw)
    spoiled = (
        spoiled_where(hidden, LENGTHS, NAN),
        spoiled_where(labels, LENGTHS, -7),
        spoiled_where(norms, LENGTHS, NAN),
    )
    return *spoiled, 5, 4, LENGTHS, COUNTS


CO_PRUNE = [
    _pruned("random", 9, 4),
    Case("co_prune", "llava", lambda d: (*_groups(d, 21, 1, 172, 4096), 77, 21), is_large=True),
    # Around what a GPU's block counts, and what it sorts.
    *(_pruned_tied(n) for n in (257, 513, 2048, 2049)),
    Case("co_prune", "n = 2880", lambda d: (*_groups(d, 300, 1, 2880, 16), 400, 300), ONE, is_large=True),
    _pruned("budget of one", 1, 4),
    _pruned("budget of as many as clusters", 4, 4),
    _pruned("budget of all", 23, 4),
    _pruned("budget of more", 26, 4),
    _pruned("budget of all but one", 22, 4),
    _pruned("more clusters than budget", 5, 17),
    _pruned("one cluster", 5, 1),
    _pruned("wide", 5, 4, width=1030),
    _pruned("ragged", 5, 4, LENGTHS, COUNTS),
    _pruned("lengths", 5, 4, LENGTHS),
    _pruned("counts, one of them 0", 9, 4, None, rows(9, 0, 1, 3)),
    _pruned("more clusters than budget, ragged", 5, 17, LENGTHS, COUNTS),
    _pruned("empty", 5, 4, rows(0, 0, 0, 0)),
    *(
        _pruned(f"{tokens} tokens, budget {budget}", budget, 2, tokens=tokens)
        for tokens in (1, 2, 3)
        for budget in (1, 2)
    ),
    Case("co_prune", "left-over in passes", _skewed),
    Case("co_prune", "ragged, spoiled", _spoiled_groups),
    Case(
        "co_prune", "unused labels", lambda d: (d.normal(4, 23, 6), 3 * d.integers(4, 4, 23), d.uniform(4, 23), 7, 40)
    ),
    Case(
        "co_prune",
        "own clusters",
        lambda d: (d.normal(2, 23, 6), torch.arange(23).expand(2, -1), d.uniform(2, 23), 7, 23),
    ),
    Case("co_prune", "tied norms", lambda d: _with_norms(d, d.lattice(4, 23).float(), 9)),
    Case("co_prune", "tied sums", lambda d: (*_groups(d, 17)[:2], torch.ones(4, 23), 5, 17)),
    Case("co_prune", "special norms", lambda d: _with_norms(d, _special(d, 4, 23).float(), 9)),
    Case("co_prune", "special norms, pooled", lambda d: (*_groups(d, 17)[:2], _special(d, 4, 23).float().abs(), 5, 17)),
    Case("co_prune", "norms of the dtype", lambda d: _with_norms(d, d.normal(4, 23), 9)),
    Case("co_prune", "strided", lambda d: (*map(strided, _groups(d)), 9, 4)),
    Case("co_prune", "transposed", lambda d: (d.normal(23, 4, 6).transpose(0, 1), *_groups(d)[1:], 9, 4)),
    Case(
        "co_prune",
        "expanded",
        lambda d: (*(t.expand(3, *t.shape[1:]) for t in _groups(d, batch=1)), 9, 4, rows(23, 9, 0)),
    ),
]


def _gathered(draw: Draw) -> Arguments:
    return [draw.normal(4, 23, 6), draw.integers(99, 4, 23), draw.uniform(4, 23) < 0.5], draw.integers(23, 4, 7)


def _many(draw: Draw) -> Arguments:
    kinds = [draw.normal(4, 23, width) for width in range(1, 20)]
    return kinds, draw.integers(23, 4, 7)


def _gathered_strided(draw: Draw) -> Arguments:
    hidden = draw.normal(23, 4, 6).transpose(0, 1)
    return [hidden, strided(draw.normal(4, 23, 6)), strided(draw.integers(99, 4, 23))], strided(draw.integers(23, 4, 7))


GATHER_TOKENS = [
    Case("gather_tokens", "random", _gathered),
    Case("gather_tokens", "places that are none", lambda d: ([d.normal(4, 23, 6)], d.integers(40, 4, 9) - 8)),
    Case(
        "gather_tokens",
        "one row for all",
        lambda d: ([d.normal(1, 23, 3, 5), d.integers(9, 1, 23)], d.integers(23, 4, 7)),
    ),
    Case("gather_tokens", "by words", lambda d: ([d.normal(2, 23, 64)], d.integers(24, 2, 11))),
    Case("gather_tokens", "more than a launch takes", _many),
    Case("gather_tokens", "strided", _gathered_strided),
    Case("gather_tokens", "expanded", lambda d: ([d.normal(1, 23, 6).expand(4, -1, -1)], d.integers(23, 4, 7))),
    Case("gather_tokens", "no places", lambda d: ([d.normal(4, 23, 6)], d.integers(23, 4, 0))),
    Case("gather_tokens", "empty tokens", lambda d: ([d.normal(4, 23, 0)], d.integers(23, 4, 7))),
    Case("gather_tokens", "one token", lambda d: ([d.normal(2, 1, 6)], d.integers(2, 2, 3))),
]


CASES = [*CLS_SALIENCY, *RECEIVED_ATTENTION, *TOP_TOKENS, *VIC, *KEY_NORM, *CO_PRUNE, *GATHER_TOKENS, *GOLDEN_CASES]
OPERATORS = ("cls_saliency", "received_attention", "top_tokens", "vic", "key_norm", "co_prune", "gather_tokens")
