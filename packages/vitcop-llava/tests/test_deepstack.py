"""What Qwen3-VL's tower hands to the first decoder layers: only of squares that are kept, merged where those are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import cpu_offload  # type: ignore[import-untyped]
from qwen_small import CLIP, MIXED, SQUARE, WIDE_ONE, Row, build, given
from torch import Tensor

import vitcop_llava
from vitcop_core import Method, Selection, VisionSelection, VisionView
from vitcop_llava import DivPrune, EarlyViTCoP, FastV, VisionZip, ViTCoP
from vitcop_llava.sequence.deepstack import Deepstack
from vitcop_llava.sequence.segment import Segment

families = pytest.mark.parametrize("family", ["qwen3", "qwen3-moe"])
PROMPTS: dict[str, list[Row]] = {"one": [[3, WIDE_ONE, 5]], "mixed": MIXED, "clips": [[2, CLIP, 4], [SQUARE, 1, CLIP]]}
prompts = pytest.mark.parametrize("rows", PROMPTS.values(), ids=PROMPTS)
IN_THE_TOWER: dict[str, Method] = {
    "vitcop": ViTCoP(retention_ratio=1 / 3),
    "visionzip": VisionZip(retention_ratio=1 / 3),
    "early": EarlyViTCoP(retention_ratio=1 / 3),
}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@contextmanager
def entering(model: Any) -> Iterator[list[tuple[Tensor, ...]]]:
    """Collect, of every call of the language model, its visual tokens and what it is to add to them, ``[n, d]``."""
    found: list[tuple[Tensor, ...]] = []

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("visual_pos_masks") is not None:
            tokens = kwargs["inputs_embeds"][kwargs["visual_pos_masks"]]
            found.append((tokens, *kwargs["deepstack_visual_embeds"]))

    handle = model.model.language_model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def projectors(model: Any) -> list[Any]:
    """Return the tower's projector, and those that make what the first decoder layers add."""
    return [model.model.visual.merger, *model.model.visual.deepstack_merger_list]


def squares_through(model: Any, inputs: dict[str, Tensor]) -> list[list[int]]:
    """Return how many squares each of them takes, call by call."""
    found: list[list[int]] = [[] for _ in projectors(model)]
    handles = [
        each.linear_fc1.register_forward_pre_hook(lambda _, args, own=own: own.append(len(args[0])))
        for each, own in zip(projectors(model), found, strict=True)
    ]
    model(**inputs)
    for handle in handles:
        handle.remove()
    return found


@families
@prompts
@pytest.mark.parametrize("method", IN_THE_TOWER.values(), ids=IN_THE_TOWER)
def test_only_kept_squares_are_projected(family: str, rows: list[Row], method: Method) -> None:
    model, inputs = build(family), given(rows, family)
    every, *others = squares_through(model, inputs)
    assert others == [every] * 3
    with vitcop_llava.prune(model, method):
        kept, *others = squares_through(model, inputs)
    assert others == [kept] * 3
    assert 0 < sum(kept) < sum(every)


@families
@pytest.mark.parametrize(
    "method", [FastV(retention_ratio=1 / 2), DivPrune(retention_ratio=1 / 3)], ids=["fastv", "div"]
)
def test_methods_that_decide_later_project_all(family: str, method: Method) -> None:
    model, inputs = build(family), given(MIXED, family)
    every = squares_through(model, inputs)
    with vitcop_llava.prune(model, method):
        assert squares_through(model, inputs) == every


@families
@prompts
def test_what_is_added_is_what_the_same_squares_add_unpruned(family: str, rows: list[Row]) -> None:
    model, inputs = build(family), given(rows, family)
    with entering(model) as found:
        model(**inputs)
        with vitcop_llava.prune(model, ViTCoP(retention_ratio=1 / 3)):
            model(**inputs)
    (tokens, *whole), (kept, *added) = found
    stays = kept.abs().sum(1) > 0
    assert 0 < int(stays.sum()) < len(tokens)
    for mine, theirs in zip([kept, *added], [tokens, *whole], strict=True):
        torch.testing.assert_close(mine[stays], theirs[stays])
        assert not mine[~stays].any()


@families
@prompts
@pytest.mark.parametrize("method", IN_THE_TOWER.values(), ids=IN_THE_TOWER)
def test_what_is_added_is_merged_as_the_tokens_are(family: str, rows: list[Row], method: Method) -> None:
    """A tower whose deep features are made of the last layer, by a projector like its own: they are the tokens."""
    model, inputs = deepcopy(build(family)), given(rows, family)
    tower = model.model.visual
    tower.deepstack_visual_indexes = [len(tower.blocks) - 1]
    tower.deepstack_merger_list = torch.nn.ModuleList([deepcopy(tower.merger)])
    with entering(model) as found, vitcop_llava.prune(model, method):
        model(**inputs)
    ((tokens, added),) = found
    assert tokens.any()
    torch.testing.assert_close(added, tokens)


class Doubled(VisionZip):
    """Makes features of its own, and does not say how."""

    def cut_vision(self, seen: VisionView, *args: Any, **kwargs: Any) -> VisionSelection:
        own = super().cut_vision(seen, *args, **kwargs)
        assert own.hidden is not None
        return replace(own, hidden=2 * own.hidden, merge=None)


@families
def test_what_is_made_of_other_things_adds_what_its_square_adds(family: str) -> None:
    model, inputs = build(family), given([[3, WIDE_ONE, 5]], family)
    with entering(model) as found:
        model(**inputs)
        with vitcop_llava.prune(model, Doubled(retention_ratio=1 / 3)):
            model(**inputs)
    (_, *whole), (kept, *added) = found
    stays = kept.abs().sum(1) > 0
    for mine, theirs in zip(added, whole, strict=True):
        torch.testing.assert_close(mine[stays], theirs[stays])


@families
def test_a_part_that_is_replaced_is_noticed(family: str) -> None:
    model, inputs = deepcopy(build(family)), given([[3, WIDE_ONE, 5]], family)
    parts = model.model.visual.deepstack_merger_list
    with vitcop_llava.prune(model, ViTCoP(retention_ratio=1 / 3)):
        own, parts[1] = parts[1], deepcopy(build(family).model.visual.deepstack_merger_list[1])
        with pytest.raises(ValueError, match="model must keep the parts of its vision tower that make features"):
            model(**inputs)
        parts[1] = own
        assert model(**inputs).logits.isfinite().all()


@families
@pytest.mark.parametrize("method", IN_THE_TOWER.values(), ids=IN_THE_TOWER)
def test_hooks_of_others_see_and_change_what_they_did(family: str, method: Method) -> None:
    """What a hook makes of the output is what the decoder adds, and it is shown no stand-in."""
    model, inputs, seen = deepcopy(build(family)), given([[3, WIDE_ONE, 5]], family), list[tuple[int, ...]]()
    parts = model.model.visual.deepstack_merger_list

    def double(module: Any, args: Any, output: Tensor) -> Tensor:
        seen.append(tuple(output.shape))
        return 2 * output

    with entering(model) as found, vitcop_llava.prune(model, method):
        model(**inputs)
        handle = parts[1].register_forward_hook(double)
        model(**inputs)
        handle.remove()
        model(**inputs)
    before, hooked, after = found
    assert {shape[1] for shape in seen} == {before[0].shape[1]}
    assert seen[0][0] == WIDE_ONE.tokens
    stays = before[0].abs().sum(1) > 0
    for number, (own, theirs) in enumerate(zip(before, hooked, strict=True)):
        torch.testing.assert_close(theirs[stays], (2 if number == 2 else 1) * own[stays])
    for own, theirs in zip(before, after, strict=True):
        assert torch.equal(own, theirs)


@families
@pytest.mark.parametrize("whole", [False, True])
def test_weights_that_are_elsewhere_are_there_in_time(family: str, whole: bool) -> None:
    model, inputs = deepcopy(build(family)), given([[3, WIDE_ONE, 5]], family)
    with vitcop_llava.prune(model, VisionZip(retention_ratio=1 / 3)):
        expected = model(**inputs).logits
    tower = type(model.model.visual).__name__
    cpu_offload(model, execution_device="cpu", preload_module_classes=[tower] if whole else None)
    with vitcop_llava.prune(model, VisionZip(retention_ratio=1 / 3)):
        assert torch.equal(model(**inputs).logits, expected)


@families
def test_gradients_reach_what_makes_them(family: str) -> None:
    model, inputs = deepcopy(build(family)), given([[3, WIDE_ONE, 5]], family)
    with torch.enable_grad(), vitcop_llava.prune(model, EarlyViTCoP(retention_ratio=1 / 3)):
        model(**inputs).logits.sum().backward()
    for part in projectors(model):
        assert part.linear_fc1.weight.grad.abs().sum() > 0


@families
def test_a_compiled_tower_gives_the_same(family: str) -> None:
    model, inputs = deepcopy(build(family)), given([[3, WIDE_ONE, 5]], family)
    with vitcop_llava.prune(model, VisionZip(retention_ratio=1 / 3)):
        eager = model(**inputs).logits
    torch.compiler.reset()
    model.model.visual.compile(backend="eager")
    with vitcop_llava.prune(model, VisionZip(retention_ratio=1 / 3)):
        torch.testing.assert_close(model(**inputs).logits, eager)
    torch.compiler.reset()


def test_features_of_merged_tokens_are_the_mean_of_their_group() -> None:
    columns = torch.arange(6)[None]
    segment = Segment(columns, None, range(1, 5), None, columns)
    where = torch.tensor([[False, True, True, True, True, False]])
    features = torch.tensor([[1.0], [3.0], [10.0], [30.0]])
    left = Deepstack(where, [features], segment)
    left.cut(4, Selection(torch.tensor([[1, 2]]), torch.zeros(1, 2, 1), None, torch.tensor([[0, 0, 1, 1]])))
    after = Segment(columns[:, :4], None, range(1, 3), None, columns[:, :4])
    assert left.add(torch.zeros(1, 4, 1), after).flatten().tolist() == [0, 2, 20, 0]
