"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images of any size, positions of three axes, features added between layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import (
    CompileConfig,
    DynamicCache,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

import vitcop_llava
from vitcop_llava import DivPrune, EarlyViTCoP, FastV, PyramidDrop, SparseVLM, VisionZip, VisPruner, ViTCoP

IMAGE, VIDEO, START, END = 90, 91, 92, 93
PATCH = 3 * 2 * 4 * 4
VISION: dict[str, Any] = {
    "depth": 4,
    "num_heads": 4,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
WIDE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32}
ADDED: dict[str, Any] = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2]}
SPARSE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any], dict[str, Any]]] = {
    "qwen2": (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        VISION | {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
        {},
    ),
    "qwen2.5": (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        VISION | WIDE | {"window_size": 16, "fullatt_block_indexes": [1, 2]},
        {},
    ),
    "qwen3": (Qwen3VLConfig, Qwen3VLForConditionalGeneration, VISION | WIDE | ADDED, {"head_dim": 8}),
    "qwen3-moe": (
        Qwen3VLMoeConfig,
        Qwen3VLMoeForConditionalGeneration,
        VISION | WIDE | ADDED,
        SPARSE | {"head_dim": 8},
    ),
}
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


@cache
def build(family: str, attention: str = "sdpa") -> Any:
    """A model with random weights, 8 decoder layers, and rotations of 4 numbers by three axes."""
    configuration, kind, vision, more = FAMILIES[family]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    text: dict[str, Any] = {
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
        "rope_parameters": rope | ({"mrope_interleaved": True} if "qwen3" in family else {}),
    }
    tokens = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START}
    config = configuration(vision_config=vision, text_config=text | more, vision_end_token_id=END, **tokens)
    config._attn_implementation = attention
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=0.7 / parameter.shape[-1] ** 0.5)
    model.generation_config.suppress_tokens = [IMAGE, VIDEO, START]
    return model.eval()


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


@dataclass(frozen=True)
class Shown:
    """An image of so many rows and columns of patches, or a clip of several steps."""

    rows: int
    columns: int
    steps: int = 0
    seed: int = 0

    @property
    def grid(self) -> tuple[int, int, int]:
        return max(self.steps, 1), self.rows, self.columns

    @property
    def tokens(self) -> int:
        return max(self.steps, 1) * self.rows * self.columns // 4

    @property
    def patches(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 100 * self.rows + self.columns)
        return torch.randn(4 * self.tokens, PATCH, generator=generator)


WIDE_ONE, TALL_ONE, SQUARE = Shown(8, 12), Shown(20, 4), Shown(8, 8, seed=1)
Row = Sequence[int | Shown]


def given(rows: Sequence[Row], family: str = "qwen2", side: str = "left") -> dict[str, Tensor]:
    """A batch as the processor makes it: of each row images, clips and numbers of tokens of text."""
    ids, shown = [], list[Shown]()
    for row in rows:
        found = [1]
        for number, part in enumerate(row):
            if isinstance(part, int):
                found += [2 + (7 * number + 3 * place) % 80 for place in range(part)]
                continue
            shown.append(part)
            token, runs = (VIDEO, part.steps) if part.steps else (IMAGE, 1)
            runs = runs if family.startswith("qwen3") else 1
            for step in range(runs):  # Qwen3-VL's clips are told step by step, a timestamp before each
                found += [*[60 + step] * (runs > 1), START, *[token] * (part.tokens // runs), END]
        ids.append(found)
    length = max(map(len, ids))
    padded = [[0] * (length - len(row)) + row if side == "left" else row + [0] * (length - len(row)) for row in ids]
    mask = [
        [0] * (length - len(row)) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * (length - len(row))
        for row in ids
    ]
    tokens = torch.tensor(padded)
    inputs = {"input_ids": tokens, "attention_mask": torch.tensor(mask), "mm_token_type_ids": _kinds(tokens)}
    for pixels, grids, own in (
        ("pixel_values", "image_grid_thw", [each for each in shown if not each.steps]),
        ("pixel_values_videos", "video_grid_thw", [each for each in shown if each.steps]),
    ):
        if own:
            inputs[pixels] = torch.cat([each.patches for each in own])
            inputs[grids] = torch.tensor([each.grid for each in own])
    return inputs


def _kinds(ids: Tensor) -> Tensor:
    return (ids == IMAGE).int() + 2 * (ids == VIDEO).int()


def answer(model: Any, inputs: dict[str, Tensor], **how: Any) -> Tensor:
    found: Tensor = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, **how)
    return found[:, -6:]


MIXED: list[Row] = [[3, WIDE_ONE, 5], [TALL_ONE, 2, SQUARE, 9], [6]]
CLIP = Shown(8, 8, steps=3)


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
        again = inputs | {"input_ids": whole, "attention_mask": mask, "mm_token_type_ids": _kinds(whole)}
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
            "mm_token_type_ids": _kinds(turn),
        }
        expected = answer(model, follow)
        text = {name: value for name, value in follow.items() if name not in ("pixel_values", "image_grid_thw")}
        found = answer(model, text | {"mm_token_type_ids": _kinds(turn)}, past_key_values=cache)
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


def received(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """What each square of each unit receives, from the tower's own attention maps of the last layer that sees all."""
    tower, kept = model.model.visual, list[Tensor]()
    whole = getattr(tower, "fullatt_block_indexes", None)
    scored = tower.blocks[max(whole) if whole else len(tower.blocks) - 1].attn
    states: dict[str, Any] = {}
    handle = scored.register_forward_pre_hook(
        lambda _, args, kwargs: states.update(kwargs, x=args[0]), with_kwargs=True
    )
    tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    handle.remove()
    heads = scored.num_heads
    queries, keys, _ = scored.qkv(states["x"]).view(len(states["x"]), 3, heads, -1).unbind(1)
    order = torch.arange(len(queries) // 4)
    if tower.config.model_type.startswith("qwen2_5"):
        from transformers.vision_utils import get_vision_window_index

        order, _ = get_vision_window_index(inputs["image_grid_thw"], 2, tower.window_size, tower.patch_size)
    cosines, sines = (part.float()[:, None] for part in states["position_embeddings"])
    half = queries.shape[-1] // 2
    queries, keys = (
        each * cosines + torch.cat([-each[..., half:], each[..., :half]], -1) * sines for each in (queries, keys)
    )
    back = torch.argsort(order)
    queries, keys = (each.unflatten(0, (-1, 4))[back].flatten(0, 1) for each in (queries, keys))
    start = 0
    for _, rows, columns in inputs["image_grid_thw"].tolist():
        own = slice(start, start + rows * columns)
        scores = torch.einsum("qhe,khe->hqk", queries[own], keys[own]) * scored.scaling
        kept.append(scores.softmax(-1).mean((0, 1)).view(-1, 4).mean(1))
        start += rows * columns
    return kept


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
            hidden[0, where[now]] += added[0][now[where]]
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


def test_features_of_merged_tokens_are_the_mean_of_their_group() -> None:
    from vitcop_core import Selection
    from vitcop_llava.sequence.deepstack import Deepstack
    from vitcop_llava.sequence.segment import Segment

    columns = torch.arange(6)[None]
    segment = Segment(columns, None, range(1, 5), None, columns)
    where = torch.tensor([[False, True, True, True, True, False]])
    features = torch.tensor([[1.0], [3.0], [10.0], [30.0]])
    left = Deepstack(where, [features], segment)
    left.cut(4, Selection(torch.tensor([[1, 2]]), torch.zeros(1, 2, 1), None, torch.tensor([[0, 0, 1, 1]])))
    after = Segment(columns[:, :4], None, range(1, 3), None, columns[:, :4])
    assert left.add(torch.zeros(1, 4, 1), after).flatten().tolist() == [0, 2, 20, 0]


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
