"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images of any size, positions of three axes, features added between layers."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from qwen_small import (
    CLIP,
    FAMILIES,
    IMAGE,
    MIXED,
    PATCH,
    SQUARE,
    START,
    VIDEO,
    WIDE_ONE,
    Row,
    build,
    given,
    kinds_of,
    received,
)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import (
    CompileConfig,
    DynamicCache,
)

import vitcop_llava
from vitcop_llava import DivPrune, EarlyViTCoP, FastV, PyramidDrop, SparseVLM, VisionZip, VisPruner, ViTCoP
from vitcop_llava.families import locate

families = pytest.mark.parametrize("family", FAMILIES)
METHODS = {
    "vitcop": ViTCoP(retention_ratio=1 / 3),
    "fastv": FastV(retention_ratio=1 / 2),
    "pyramiddrop": PyramidDrop(retention_ratio=2 / 3),
    "sparsevlm": SparseVLM(retention_ratio=1 / 2),
    "visionzip": VisionZip(retention_ratio=1 / 3),
    "divprune": DivPrune(retention_ratio=1 / 3),
    "vispruner": VisPruner(retention_ratio=1 / 3),
    "early": EarlyViTCoP(retention_ratio=1 / 3, ranking="layer0"),
}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
# Recomputing a longer prompt is the same prefill only where no cut looks at the last token.
FIXED = ("vitcop", "visionzip", "divprune", "vispruner")
fixed = pytest.mark.parametrize("method", [METHODS[name] for name in FIXED], ids=FIXED)


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def answer(model: Any, inputs: dict[str, Tensor], **how: Any) -> Tensor:
    found: Tensor = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, **how)
    return found[:, -6:]


PROMPTS: dict[str, list[Row]] = {
    "one": [[3, WIDE_ONE, 5]],
    "mixed": MIXED,
    "clips": [[2, CLIP, 4], [SQUARE, 1, CLIP, 3]],
}
prompts = pytest.mark.parametrize("rows", PROMPTS.values(), ids=PROMPTS)


@families
@prompts
def test_keeping_everything_is_the_unpruned_model(family: str, rows: list[Row]) -> None:
    model, inputs = build(family), given(rows, family)
    logits, tokens, beams = model(**inputs).logits, answer(model, inputs), answer(model, inputs, num_beams=2)
    with vitcop_llava.prune(model, ViTCoP(retention_ratio=1)) as pruner:
        assert torch.equal(model(**inputs).logits, logits)
        assert torch.equal(answer(model, inputs), tokens)
        assert torch.equal(answer(model, inputs, num_beams=2), beams)
        plan = pruner.report.rows[0].plan
        assert plan is not None
        assert plan.visual_tokens == sum(part.tokens for part in rows[0] if not isinstance(part, int))
    assert torch.equal(model(**inputs).logits, logits)


@families
@methods
@pytest.mark.parametrize("side", ["left", "right"])
@prompts
def test_a_batch_is_its_rows(family: str, method: Any, side: str, rows: list[Row]) -> None:
    model, inputs = build(family), given(rows, family, side)
    with vitcop_llava.prune(model, method) as pruner:
        logits = model(**inputs).logits
        kept = [stage.tokens for row in pruner.report.rows for stage in row.stages]
        alone = []
        for number, row in enumerate(rows):
            own = given([row], family)
            there = inputs["attention_mask"][number].bool()
            found = model(**own).logits[0]
            torch.testing.assert_close(logits[number][there][-3:], found[-3:], atol=2e-4, rtol=1e-3)
            alone += [stage.tokens for each in pruner.report.rows for stage in each.stages]
        assert kept == alone
        if side == "left":
            each = [answer(model, given([row], family)) for row in rows]
            assert torch.equal(answer(model, inputs), torch.cat(each))


@families
@fixed
@prompts
def test_decoding_with_the_cache_is_recomputing(family: str, method: Any, rows: list[Row]) -> None:
    model, inputs = build(family), given(rows, family)
    with vitcop_llava.prune(model, method):
        tokens = answer(model, inputs)
        whole = torch.cat([inputs["input_ids"], tokens], dim=1)
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(tokens)], dim=1)
        again = inputs | {"input_ids": whole, "attention_mask": mask, "mm_token_type_ids": kinds_of(whole)}
        logits = model(**again).logits[:, -7:-1]
    logits[..., [IMAGE, VIDEO, START]] = float("-inf")
    assert torch.equal(logits.argmax(-1), tokens)


@families
@methods
def test_beams_and_static_caches_answer_as_dynamic_ones(family: str, method: Any) -> None:
    model, inputs = build(family), given(MIXED, family)
    with vitcop_llava.prune(model, method):
        tokens = answer(model, inputs)
        assert torch.equal(answer(model, inputs, cache_implementation="static", disable_compile=True), tokens)
        beams = answer(model, inputs, num_beams=3)
        each = [answer(model, given([row], family), num_beams=3) for row in MIXED]
        assert torch.equal(beams, torch.cat(each))


@families
@fixed
def test_a_second_turn_continues_the_first(family: str, method: Any) -> None:
    model, inputs = build(family), given([[3, WIDE_ONE, 5]], family)
    with vitcop_llava.prune(model, method):
        cache = DynamicCache()
        first = model.generate(**inputs, past_key_values=cache, max_new_tokens=4, do_sample=False)
        turn = torch.cat([first, torch.tensor([[11, 12, 13, 14]])], dim=1)
        follow = inputs | {
            "input_ids": turn,
            "attention_mask": torch.ones_like(turn),
            "mm_token_type_ids": kinds_of(turn),
        }
        expected = answer(model, follow)
        text = {name: value for name, value in follow.items() if name not in ("pixel_values", "image_grid_thw")}
        found = answer(model, text | {"mm_token_type_ids": kinds_of(turn)}, past_key_values=cache)
        assert torch.equal(found, expected)


@families
@methods
def test_block_leaves_nothing(family: str, method: Any) -> None:
    model, inputs = build(family), given([[3, WIDE_ONE, 5]], family)
    model(**inputs, output_hidden_states=True)
    before, logits = snapshot(model), model(**inputs).logits
    with vitcop_llava.prune(model, method):
        assert not torch.equal(model(**inputs).logits, logits)
        with pytest.raises(ValueError, match="pixel_values must"):
            model(**inputs | {"image_grid_thw": torch.tensor([[1, 4, 4]])})
    assert snapshot(model) == before
    assert torch.equal(model(**inputs).logits, logits)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Names and identities of what each module holds, rope_deltas apart, which every call replaces."""
    found = {}
    for name, module in model.named_modules():
        hooks = [sorted(value) for key, value in vars(module).items() if "hook" in key and isinstance(value, dict)]
        plain = {key: id(value) for key, value in vars(module).items() if not isinstance(value, dict)}
        plain.pop("rope_deltas", None)
        plain.pop("_is_full_backward_hook", None)
        found[name] = (hooks, plain)
    return found


@families
def test_stage_one_keeps_the_squares_that_receive_most(family: str) -> None:
    model, inputs = build(family), given(MIXED, family)
    paid = received(model, inputs)
    with vitcop_llava.prune(model, ViTCoP(retention_ratio=1 / 3)) as pruner:
        model(**inputs)
        found = [pruner.survivors(row).stages[0].patches for row in (0, 1)]
        counts = pruner.report.rows[0].stages[0].tokens
    assert len(found[0]) == counts
    assert torch.equal(found[0], paid[0].topk(counts).indices.sort().values)
    first = found[1][found[1] < len(paid[1])]
    second = found[1][found[1] >= len(paid[1])] - len(paid[1])
    for own, values in ((first, paid[1]), (second, paid[2])):
        assert torch.equal(own, values.topk(len(own)).indices.sort().values)


@families
def test_stage_one_takes_the_projections_that_the_tower_makes(family: str) -> None:
    model, inputs = build(family), given(MIXED, family)
    scored = locate(model).scored
    assert scored is not None
    attention: Any = scored.attention
    calls = list[int]()
    handle = attention.qkv.register_forward_hook(lambda *args: calls.append(1))
    with vitcop_llava.prune(model, ViTCoP(retention_ratio=1 / 3)):
        model(**inputs)
    handle.remove()
    assert len(calls) == 1


@families
def test_stage_one_hears_an_adapter_that_is_put_on_inside_the_block(family: str) -> None:
    model, inputs, method = build(family), given(MIXED, family), ViTCoP(retention_ratio=1 / 3)
    scored = locate(model).scored
    assert scored is not None
    attention: Any = scored.attention
    own, other = attention.qkv, deepcopy(attention.qkv)
    nn.init.normal_(other.weight, std=0.5)
    try:
        with vitcop_llava.prune(model, method) as pruner:
            model(**inputs)
            before = pruner.survivors(0).stages[0].patches
            attention.qkv = other
            model(**inputs)
            found = pruner.survivors(0).stages[0].patches
        with vitcop_llava.prune(model, method) as pruner:
            model(**inputs)
            assert torch.equal(found, pruner.survivors(0).stages[0].patches)
        assert not torch.equal(found, before)
    finally:
        attention.qkv = own


@families
@pytest.mark.parametrize(
    "method", [ViTCoP(ratios=(0.5, 0.5, 0.5)), FastV(retention_ratio=1 / 2, layer=2)], ids=["entry", "layer"]
)
def test_what_stays_is_run_at_its_own_positions(family: str, method: Any) -> None:
    """Against a plain loop over the layers: kept tokens at their positions, with their own features added."""
    model, inputs = build(family), given([[3, WIDE_ONE, 5]], family)
    base = model.model
    image = base.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    embeds = base.language_model.embed_tokens(inputs["input_ids"])
    where = inputs["input_ids"][0] == IMAGE
    embeds[0, where] = image.pooler_output[0]
    positions, _ = base.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"], inputs["image_grid_thw"])
    with vitcop_llava.prune(model, method) as pruner:
        logits = model(**inputs).logits
        stages = pruner.survivors().stages
    stays = [torch.ones(len(where), dtype=torch.bool) for _ in range(8)]
    for stage in stages:
        for layer in range(stage.layer or 0, 8):
            stays[layer] = ~where
            stays[layer][where.nonzero().flatten()[stage.patches]] = True
    hidden, now = embeds, torch.ones_like(where)
    for number, layer in enumerate(base.language_model.layers):
        hidden = hidden[:, stays[number][now]]
        now = stays[number]
        rotary = base.language_model.rotary_emb(hidden, positions[:, :, now])
        count = int(now.sum())
        mask = torch.full((count, count), float("-inf")).triu(1)[None, None]
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
        for added in getattr(image, "deepstack_features", ())[number : number + 1]:
            # Of one image; before transformers 5.20 or so they are not told apart by image.
            hidden[0, where[now]] += (added if isinstance(added, Tensor) else added[0])[now[where]]
    expected = model.lm_head(base.language_model.norm(hidden))
    torch.testing.assert_close(logits[:, -5:], expected[:, -5:], atol=2e-4, rtol=1e-3)


@families
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_grid_thw": None}, "image_grid_thw must be given with the pixels, got None"),
        ({"image_grid_thw": torch.tensor([[1.0, 8, 12]])}, "image_grid_thw must be a tensor of integers"),
        ({"image_grid_thw": torch.tensor([1, 8, 12])}, r"image_grid_thw must be of shape \[n, 3\]"),
        ({"image_grid_thw": torch.tensor([[1, 0, 12]])}, "image_grid_thw must have rows and columns"),
        (
            {"image_grid_thw": torch.tensor([[1, 32, 3]])},
            "image_grid_thw must have rows and columns that are multiples",
        ),
        ({"image_grid_thw": torch.tensor([[2, 4, 12]])}, "image_grid_thw must have one step in time"),
        ({"image_grid_thw": torch.tensor([[1, 8, 8]])}, r"pixel_values must be of shape \[64, patch\]"),
        (
            {"pixel_values": torch.zeros(64, PATCH), "image_grid_thw": torch.tensor([[1, 8, 8]])},
            "input_ids must hold the 16 image",
        ),
    ],
)
def test_grids_that_do_not_fit_are_refused_before_any_work(family: str, change: dict[str, Any], message: str) -> None:
    model, inputs = build(family), given([[3, WIDE_ONE, 5]], family)
    runs: list[int] = []
    handle = model.model.visual.blocks[0].register_forward_hook(lambda *_: runs.append(1))
    with vitcop_llava.prune(model, METHODS["vitcop"]), pytest.raises((ValueError, TypeError), match=message):
        model(**inputs | change, position_ids=torch.arange(inputs["input_ids"].shape[1])[None])
    handle.remove()
    assert not runs


@families
def test_cls_is_refused(family: str) -> None:
    with pytest.raises(ValueError, match="model must have a vision tower with a CLS token"):
        vitcop_llava.prune(build(family), ViTCoP(retention_ratio=1 / 3, vision_saliency="cls"))


class Waits(TorchFunctionMode):
    """Counts the calls that read values from the device, whoever makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        is_counted = name != "repeat_interleave" or isinstance(args[1], Tensor)
        self.count += (name in READS and is_counted) or (name in ("__getitem__", "__setitem__") and by_mask(args[1]))
        return function(*args, **(kwargs or {}))


READS = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__"}
READS |= {"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "equal", "repeat_interleave"}


def by_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, Tensor) and part.dtype is torch.bool for part in parts)


@families
@methods
@prompts
def test_a_pruned_prefill_waits_no_more_often(family: str, method: Any, rows: list[Row]) -> None:
    model, inputs = build(family), given(rows, family)
    with Waits() as unpruned:
        model(**inputs)
    with vitcop_llava.prune(model, method), Waits() as pruned:
        model(**inputs)
    assert pruned.count <= unpruned.count


@pytest.mark.parametrize("family", ["qwen2.5", "qwen3"])
def test_replayed_and_compiled_it_is_the_same(family: str) -> None:
    model, inputs = build(family), given([[3, WIDE_ONE, 5]], family)
    with vitcop_llava.prune(model, METHODS["vitcop"]):
        logits, tokens = model(**inputs).logits, answer(model, inputs)
        torch.compiler.reset()
        how: dict[str, Any] = {"backend": "eager", "fullgraph": True, "dynamic": False}
        compiled = answer(model, inputs, cache_implementation="static", compile_config=CompileConfig(**how))
        assert torch.equal(compiled, tokens)
    with vitcop_llava.prune(model, METHODS["vitcop"], capture=True):
        assert torch.equal(model(**inputs).logits, logits)
        assert torch.equal(answer(model, inputs), tokens)


@families
def test_an_image_joins_in_a_second_turn(family: str) -> None:
    """The cache holds an image that was pruned; another one follows it."""
    model, method = build(family), METHODS["vitcop"]
    both = given([[3, WIDE_ONE, 5, SQUARE, 4]], family)
    head = 1 + 3 + WIDE_ONE.tokens + 2 + 5
    with vitcop_llava.prune(model, method):
        whole = model(**both).logits
        cache = DynamicCache()
        first = {name: both[name][:, :head] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
        patches = 4 * WIDE_ONE.tokens
        model(
            **first,
            pixel_values=both["pixel_values"][:patches],
            image_grid_thw=both["image_grid_thw"][:1],
            past_key_values=cache,
        )
        positions, _ = model.model.get_rope_index(both["input_ids"], both["mm_token_type_ids"], both["image_grid_thw"])
        then = model(
            input_ids=both["input_ids"][:, head:],
            attention_mask=both["attention_mask"],
            pixel_values=both["pixel_values"][patches:],
            image_grid_thw=both["image_grid_thw"][1:],
            position_ids=positions[:, :, head:],
            past_key_values=cache,
        ).logits
    assert then.shape == whole[:, head:].shape
    assert torch.isfinite(then).all()


@families
def test_prefixes_are_refused(family: str) -> None:
    model, inputs = build(family), given([[3, WIDE_ONE, 5]], family)
    with pytest.raises(ValueError, match="model must number its tokens along one axis to encode an image once"):
        vitcop_llava.encode_image(model, inputs["input_ids"], inputs["pixel_values"], method=METHODS["vitcop"])


@families
def test_an_image_that_the_mask_hides_is_an_absent_one(family: str) -> None:
    model = build(family)
    inputs = given([[SQUARE, 2, WIDE_ONE, 5]], family)
    hidden = 1 + SQUARE.tokens + 2
    inputs["attention_mask"][:, :hidden] = 0
    alone = {name: inputs[name][:, hidden:] for name in ("input_ids", "mm_token_type_ids")}
    alone |= {"pixel_values": WIDE_ONE.patches, "image_grid_thw": torch.tensor([WIDE_ONE.grid])}
    with vitcop_llava.prune(model, METHODS["vitcop"]) as pruner:
        # transformers has no positions for it: it looks for a grid of every image that it sees, and for no other.
        found = model(**inputs, position_ids=torch.arange(inputs["input_ids"].shape[1])[None]).logits
        hiding = pruner.survivors().stages[0].patches
        expected = model(**alone, position_ids=torch.arange(alone["input_ids"].shape[1])[None]).logits
        assert torch.equal(hiding, pruner.survivors().stages[0].patches)
    torch.testing.assert_close(found[:, -5:], expected[:, -5:], atol=2e-4, rtol=1e-3)
