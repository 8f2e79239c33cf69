"""LLaVA-OneVision: grids that are interpolated behind the projector, images that share a prompt, frames of clips."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engines import tokens_of
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import (
    CLIPVisionConfig,
    DynamicCache,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    Qwen2Config,
    SiglipVisionConfig,
)

import vitcop_llava
from vitcop_core import ops
from vitcop_llava import DivPrune, EarlyViTCoP, FastV, PyramidDrop, SparseVLM, VisionZip, VisPruner, ViTCoP
from vitcop_llava.engine import plan_image
from vitcop_llava.families import locate
from vitcop_llava.tools.analysis import observe
from vitcop_llava.tools.comparison.costs import CostCounter

IMAGE, VIDEO = 90, 91
TILE, SIDE = 40, 5
PINPOINTS = [[TILE * down, TILE * across] for down in range(1, 4) for across in range(1, 4)]
TOWERS: dict[str, Any] = {"siglip": (SiglipVisionConfig, "full"), "clip": (CLIPVisionConfig, "default")}
METHODS = {
    "vitcop": ViTCoP(retention_ratio=1 / 3, cutoff_distance=3.0),
    "fastv": FastV(retention_ratio=1 / 2),
    "pyramiddrop": PyramidDrop(retention_ratio=2 / 3),
    "sparsevlm": SparseVLM(retention_ratio=1 / 2),
    "visionzip": VisionZip(retention_ratio=1 / 3),
    "early": EarlyViTCoP(retention_ratio=1 / 3, ranking="layer0"),
    "divprune": DivPrune(retention_ratio=1 / 3),
    "vispruner": VisPruner(retention_ratio=1 / 3),
}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
# Recomputing a longer prompt is the same prefill only where no cut looks at the last token.
fixed = pytest.mark.parametrize("method", [METHODS["vitcop"], METHODS["visionzip"]], ids=["vitcop", "visionzip"])


@cache
def build(tower: str = "siglip", attention: str = "sdpa") -> Any:
    """A model with random weights: 3 layers of tower, tiles of 5 x 5 patches, frames of 3 x 3 tokens."""
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    kind, strategy = TOWERS[tower]
    text = Qwen2Config(
        **sizes,
        vocab_size=100,
        num_hidden_layers=8,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    make: Any = LlavaOnevisionConfig
    config = make(
        vision_config=kind(**sizes, num_hidden_layers=3, image_size=TILE, patch_size=8),
        text_config=text,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_2",
        vision_feature_layer=-1,
        vision_feature_select_strategy=strategy,
    )
    config._attn_implementation = attention
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = LlavaOnevisionForConditionalGeneration(config)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=0.7 / parameter.shape[-1] ** 0.5)
    model.generation_config.suppress_tokens = [IMAGE, VIDEO]
    return model.eval()


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


Row = Sequence[int | tuple[int, int] | str]
"""Numbers of words, heights and widths of images, and clips such as "clip3"."""

SMALL, LARGE, WIDE, FLAT = (38, 41), (120, 90), (70, 119), (18, 120)
TILED = ViTCoP(ratios=(Fraction(39, 50), Fraction(37, 50), Fraction(1, 20)), cutoff_distance=3.0)
PROMPTS: dict[str, list[Row]] = {
    "one": [[3, SMALL, 5]],
    "interpolated": [[3, LARGE, 5]],
    "mixed": [[3, WIDE, 5], [2, SMALL, 1, LARGE, 3], [6], [1, FLAT, 9]],
    "clips": [["clip3", 4], [2, "clip3", 5]],
    "both": [[2, "clip2", 1, LARGE, 4], [1, "clip4", 2, "clip3", 3]],
}
prompts = pytest.mark.parametrize("rows", PROMPTS.values(), ids=PROMPTS)
# Images and clips of one length are what transformers takes; it has no form for clips of several.
stock = pytest.mark.parametrize("rows", [PROMPTS[name] for name in list(PROMPTS)[:4]], ids=list(PROMPTS)[:4])


def given(rows: Sequence[Row], side: str = "left", *, seed: int = 0) -> dict[str, Any]:
    """A batch as the processor makes it."""
    anyres, video = layouts()
    ids, pixels, sizes, counts, clips = [], list[Tensor](), [], list[int](), list[Tensor]()
    for row in rows:
        found, images = [1], [part for part in row if isinstance(part, tuple)]
        counts += [len(images)] * bool(images)
        for number, part in enumerate(row):
            if isinstance(part, int):
                found += [2 + (7 * number + 3 * place) % 80 for place in range(part)]
            elif isinstance(part, str):
                frames = int(part.removeprefix("clip"))
                clips.append(noise(frames, 100 + seed + frames))
                found += [VIDEO] * video.clip(frames).placeholders
            else:
                tiling = anyres.tile(*part)
                pixels.append(noise(len(tiling.boxes), sum(part) + seed))
                sizes.append(part)
                found += [IMAGE] * (tiling if len(images) == 1 else anyres.untiled).placeholders
        ids.append(found)
    length = max(map(len, ids))
    empty = [[0] * (length - len(row)) for row in ids]
    masks = [[1] * len(row) for row in ids]
    inputs: dict[str, Any] = {
        name: torch.tensor([gap + row if side == "left" else row + gap for gap, row in zip(empty, own, strict=True)])
        for name, own in (("input_ids", ids), ("attention_mask", masks))
    }
    if pixels:
        inputs["pixel_values"] = nn.utils.rnn.pad_sequence(pixels, batch_first=True)
        inputs |= {"image_sizes": torch.tensor(sizes), "batch_num_images": torch.tensor(counts)}
    if clips:
        alike = len({len(clip) for clip in clips}) == 1
        inputs["pixel_values_videos"] = torch.stack(clips) if alike else clips
    return inputs


def layouts() -> tuple[Any, Any]:
    """How the model's images and clips lie."""
    parts = locate(build())
    return parts.anyres, parts.video


def noise(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, TILE, TILE, generator=torch.Generator().manual_seed(seed))


def answer(model: Any, inputs: dict[str, Any], **how: Any) -> Tensor:
    found: Tensor = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, **how)
    return found[:, -6:]


@stock
@pytest.mark.parametrize("tower", TOWERS)
def test_keeping_everything_is_the_unpruned_model(tower: str, rows: list[Row]) -> None:
    model, inputs = build(tower), given(rows)
    logits, tokens, beams = model(**inputs).logits, answer(model, inputs), answer(model, inputs, num_beams=2)
    with vitcop_llava.prune(model, ViTCoP(retention_ratio=1)) as pruner:
        assert torch.equal(model(**inputs).logits, logits)
        counted = pruner.report.rows[0]
        assert torch.equal(answer(model, inputs), tokens)
        assert torch.equal(answer(model, inputs, num_beams=2), beams)
    assert counted.plan is not None
    visual = int(((inputs["input_ids"][0] == IMAGE) | (inputs["input_ids"][0] == VIDEO)).sum())
    assert counted.plan.visual_tokens + counted.newlines == visual
    assert torch.equal(model(**inputs).logits, logits)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize(
    "method", [METHODS[name] for name in ("early", "visionzip", "divprune", "vispruner")], ids=repr
)
def test_an_engine_gets_the_tokens_that_enter(tower: str, method: Any) -> None:
    model, anyres = build(tower), layouts()[0]
    for size in (SMALL, LARGE, WIDE, FLAT):
        inputs, tiling = given([[3, size, 5]]), anyres.tile(*size)
        (wanted,) = vitcop_llava.embed_images(model, method, **inputs)
        found = tokens_of(model, method, inputs["pixel_values"][0], tiling, size)
        assert plan_image(method, 8, tiling) == len(found)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@methods
@prompts
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_its_rows(method: Any, side: str, rows: list[Row]) -> None:
    model, inputs = build(), given(rows, side)
    with vitcop_llava.prune(model, method) as pruner:
        logits = model(**inputs).logits
        kept = [stage.tokens for row in pruner.report.rows for stage in row.stages]
        alone = []
        for number, row in enumerate(rows):
            there = inputs["attention_mask"][number].bool()
            found = model(**given([row])).logits[0]
            torch.testing.assert_close(logits[number][there][-3:], found[-3:], atol=2e-4, rtol=1e-3)
            alone += [stage.tokens for each in pruner.report.rows for stage in each.stages]
        assert kept == alone
        if side == "left":
            each = [answer(model, given([row])) for row in rows]
            assert torch.equal(answer(model, inputs), torch.cat(each))


@fixed
@prompts
def test_decoding_with_the_cache_is_recomputing(method: Any, rows: list[Row]) -> None:
    model, inputs = build(), given(rows)
    with vitcop_llava.prune(model, method):
        tokens = answer(model, inputs)
        whole = torch.cat([inputs["input_ids"], tokens], dim=1)
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(tokens)], dim=1)
        logits = model(**inputs | {"input_ids": whole, "attention_mask": mask}).logits[:, -7:-1]
    logits[..., [IMAGE, VIDEO]] = float("-inf")
    assert torch.equal(logits.argmax(-1), tokens)


@pytest.mark.parametrize(
    ("rows", "method"),
    [
        ([["clip30", LARGE, 3], [FLAT, 3]], TILED),
        ([[FLAT, 3], ["clip30", LARGE, 3]], TILED),
        *(
            ([[SMALL, 4], [1, LARGE, 3]], ViTCoP(retention_ratio=share, cutoff_distance=3.0))
            for share in (Fraction(9, 20), Fraction(13, 25))
        ),
    ],
    ids=["clip first", "clip second", "9/20", "13/25"],
)
def test_units_that_are_not_clustered_beside_others_that_are(rows: list[Row], method: ViTCoP) -> None:
    """They are decided in groups, and each token of one that is not clustered stands for itself."""
    model = build()

    def last(own: Sequence[Row]) -> Tensor:
        found: Tensor = model(**given(own, seed=1)).logits[:, -1]
        return found

    with vitcop_llava.prune(model, method):
        together, alone = last(rows), torch.cat([last([row]) for row in rows])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize("row", [[3, SMALL], [3, LARGE], [3, SMALL, 2, LARGE], [SMALL, WIDE, FLAT, 4]], ids=repr)
def test_costs_of_a_comparison_are_those_of_the_report(row: Row) -> None:
    """Of several images none is tiled."""
    model, method = build(), METHODS["vitcop"]
    with vitcop_llava.prune(model, method) as pruner:
        model(**given([row]))
        report = pruner.report
    sizes = tuple(part for part in row if isinstance(part, tuple))
    cost = CostCounter(method, locate(model), 4).mean([(sizes, report.rows[0].text_tokens)])
    plan = report.rows[0].plan
    assert plan is not None
    assert (cost.macs, cost.kv_bytes) == (report.macs()[0], report.kv_bytes()[0])
    assert (cost.tokens, cost.tokens_per_layer) == (float(plan.average_tokens), plan.tokens_per_layer)


def test_newlines_of_untiled_images_stay_in_a_row_as_alone() -> None:
    """Where Stage I keeps every patch of all images, and a row beside it has one that is cut."""
    model, method = build(), ViTCoP(retained_tokens=20, cutoff_distance=3.0)
    rows: list[Row] = [[SMALL, WIDE, 5], [LARGE, 5]]
    with vitcop_llava.prune(model, method, keep_newline=True):
        together = model(**given(rows)).logits[:, -1]
        alone = torch.cat([model(**given([row])).logits[:, -1] for row in rows])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-4)


def test_a_prefix_takes_what_the_processor_gives() -> None:
    model, question = build(), [5, 6]
    inputs = given([[3, SMALL, 2, LARGE]])
    ids = torch.cat([inputs["input_ids"], torch.tensor([question])], dim=1)
    with vitcop_llava.prune(model, METHODS["vitcop"]):
        prefix = vitcop_llava.encode_image(model, **inputs)
        wanted = answer(model, {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)})
        assert torch.equal(answer(model, prefix.inputs([question])), wanted)


@methods
@pytest.mark.parametrize("name", ["mixed", "clips", "both"])
def test_beams_and_static_caches_answer_as_dynamic_ones(method: Any, name: str) -> None:
    model, rows = build(), PROMPTS[name]
    if name == "both" and "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        pytest.skip("this transformers encodes after it has made the beams, and repeats tensors alone for them")
    inputs = given(rows)
    with vitcop_llava.prune(model, method):
        tokens = answer(model, inputs)
        assert torch.equal(answer(model, inputs, cache_implementation="static", disable_compile=True), tokens)
        each = [answer(model, given([row]), num_beams=3) for row in rows]
        assert torch.equal(answer(model, inputs, num_beams=3), torch.cat(each))


@fixed
@pytest.mark.parametrize("row", [[3, LARGE, 5], [2, WIDE, SMALL, 4], [1, "clip3", 3]], ids=["one", "two", "clip"])
def test_a_second_turn_continues_the_first(method: Any, row: Row) -> None:
    model, inputs = build(), given([row])
    with vitcop_llava.prune(model, method):
        cache = DynamicCache()
        first = model.generate(**inputs, past_key_values=cache, max_new_tokens=4, do_sample=False)
        turn = torch.cat([first, torch.tensor([[11, 12, 13, 14]])], dim=1)
        text = {"input_ids": turn, "attention_mask": torch.ones_like(turn)}
        expected = answer(model, inputs | text)
        assert torch.equal(answer(model, text, past_key_values=cache), expected)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Names and identities of what each module holds."""
    found = {}
    for name, module in model.named_modules():
        hooks = [sorted(value) for key, value in vars(module).items() if "hook" in key and isinstance(value, dict)]
        plain = {key: id(value) for key, value in vars(module).items() if not isinstance(value, dict)}
        plain.pop("_is_full_backward_hook", None)
        found[name] = (hooks, plain)
    return found


@methods
@pytest.mark.parametrize("name", ["interpolated", "clips"])
def test_block_leaves_nothing(method: Any, name: str) -> None:
    model, inputs = build(), given(PROMPTS[name])
    model(**inputs, output_hidden_states=True)
    before, logits = snapshot(model), model(**inputs).logits
    with vitcop_llava.prune(model, method):
        assert not torch.equal(model(**inputs).logits, logits)
        with pytest.raises(ValueError, match="must"):
            model(**inputs | {name: each[:1, ..., :1] for name, each in inputs.items() if "pixel" in name})
    assert snapshot(model) == before
    assert torch.equal(model(**inputs).logits, logits)


def sizes(count: int, most: int) -> list[tuple[int, int]]:
    """Heights and widths: of photographs, of anything, and of every kind of edge."""
    draw = torch.Generator().manual_seed(0)
    found = [(1, 1), (2, 2), (1, 500), (500, 1), (384, 384), (1152, 1152), (1152, 1153), (1536, 1152), (2304, 2304)]
    while len(found) < count:
        scale, shape = (torch.rand(2, generator=draw) * torch.tensor([12.0, 6.0])).tolist()
        height, width = int(2**scale * 2 ** (shape - 3)), int(2**scale)
        found.append((min(max(height, 1), most), min(max(width, 1), most)))
    return found


RELEASED: Any = LlavaOnevisionConfig().image_grid_pinpoints
GRIDS: dict[str, tuple[list[list[int]], int, int, str]] = {
    "released": (RELEASED, 384, 14, "anyres_max_9"),
    "few": (RELEASED, 384, 14, "anyres_max_4"),
    "small": (PINPOINTS, TILE, 8, "anyres_max_2"),
}


@pytest.mark.parametrize("name", GRIDS)
def test_placeholders_follow_from_an_images_size_as_transformers_counts_and_packs_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (pinpoints, tile, patch, aspect) = build(), GRIDS[name]
    side = tile // patch
    for holder, setting, value in (
        (model.config, "image_grid_pinpoints", pinpoints),
        (model.config, "vision_aspect_ratio", aspect),
        (model.config.vision_config, "image_size", tile),
        (model.config.vision_config, "patch_size", patch),
    ):
        monkeypatch.setattr(holder, setting, value)
    processor: Any = object.__new__(LlavaOnevisionProcessor)
    processor.num_image_tokens, processor.vision_aspect_ratio = side**2, aspect
    processor.image_processor = SimpleNamespace(image_grid_pinpoints=pinpoints)
    anyres, kinds = layouts()[0], set()
    for height, width in sizes(150, 4000):
        tiling = anyres.tile(height, width)
        kinds.add(tiling.is_interpolated)
        assert tiling.placeholders == processor._get_number_of_features(height, width, tile, tile), (height, width)
        ones, newline = torch.ones(len(tiling.boxes), side**2, 1), torch.tensor([-1.0])
        packed, _ = model.model.pack_image_features([ones], [(height, width)], newline, aspect)
        assert (packed[0][:, 0] < 0).nonzero().flatten().tolist() == list(tiling.newline_places), (height, width)
        assert len(packed[0]) == tiling.placeholders
        assert sum(tiling.counts) == tiling.tokens == tiling.placeholders - tiling.newlines
        if tiling.is_interpolated:
            taken = torch.zeros(tiling.lines, dtype=torch.int64)
            for top, bottom, left, right in tiling.cells:
                taken[top:bottom, left:right] += 1
            assert bool((taken == 1).all())
    assert kinds == {False, True}
    packed, _ = model.model.pack_image_features([torch.ones(1, side**2, 1)], [(9, 9)], torch.tensor([-1.0]), aspect)
    assert (len(packed[0]), side**2) == (anyres.untiled.placeholders, *anyres.untiled.newline_places)


def shown(model: Any, tiles: Tensor) -> tuple[Tensor, Tensor]:
    """What each patch of each unit receives in the last layer, and its key: ``[C, 25]`` and ``[C, 25, 32]``."""
    tower = model.model.vision_tower
    states = tower(tiles, output_hidden_states=True).hidden_states[2]
    layer = tower.encoder.layers[2]
    normed = layer.layer_norm1(states)
    queries, keys = (getattr(layer.self_attn, f"{name}_proj")(normed) for name in "qk")
    split = [each.unflatten(-1, (4, 8)) for each in (queries, keys)]
    paid = (torch.einsum("cqhe,ckhe->chqk", *split) / 8**0.5).softmax(-1)
    return paid.mean((1, 2)), keys


def weights(length: int, tokens: int) -> Tensor:
    """``[tokens, length]``: how much of each patch of an axis is in each token, by bilinear interpolation."""
    found = torch.zeros(tokens, length)
    for token in range(tokens):
        place = max((token + 0.5) * length / tokens - 0.5, 0)
        first = min(int(place), length - 1)
        found[token, first] += 1 - (place - first)
        found[token, min(first + 1, length - 1)] += place - first
    return found


def per_unit(tiling: Any, values: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each unit the numbers of its tokens in the image, their values, and where they begin on its own grid."""
    base = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    found = [(torch.arange(25), values[0], base / 5)]
    (down, across), (top, bottom, left, right) = tiling.tiles, tiling.window
    merged = values[1:].view(down, across, 5, 5, -1).transpose(1, 2).reshape(5 * down, 5 * across, -1)
    window, (rows, columns) = merged[top:bottom, left:right], tiling.lines
    by_row, by_column = weights(bottom - top, rows), weights(right - left, columns)
    tokens = torch.einsum("ri,cj,ijd->rcd", by_row, by_column, window)
    at_row = [top + row * (bottom - top) / rows for row in range(rows)]
    at_column = [left + column * (right - left) / columns for column in range(columns)]
    for tile in range(down * across):
        first, second = 5 * (tile // across), 5 * (tile % across)
        inside = [
            (row, column)
            for row in range(rows)
            for column in range(columns)
            if first <= at_row[row] + (bottom - top) / rows / 2 < first + 5
            and second <= at_column[column] + (right - left) / columns / 2 < second + 5
        ]
        own = torch.tensor(inside)
        places = torch.tensor([((at_row[row] - first) / 5, (at_column[column] - second) / 5) for row, column in inside])
        found.append((25 + own[:, 0] * columns + own[:, 1], tokens[own[:, 0], own[:, 1]], places))
    return found


@pytest.mark.parametrize("size", [LARGE, (115, 77), (120, 120)])
def test_stage_one_of_interpolated_tiles_told_again_slowly(size: tuple[int, int]) -> None:
    model, inputs, method = build(), given([[2, size, 3]]), METHODS["vitcop"]
    tiling = layouts()[0].tile(*size)
    assert tiling.is_interpolated
    saliency, keys = shown(model, inputs["pixel_values"][0])
    plan: Any = method.plan(8, tiling.units)
    kept, labels, clusters = list[int](), torch.full((tiling.tokens,), -1), 0
    units = zip(per_unit(tiling, saliency[..., None]), per_unit(tiling, keys), strict=True)
    counts = zip(plan.vision.keep, plan.vision.clusters, strict=True)
    for ((numbers, paid, places), (_, features, _)), (keep, centers) in zip(units, counts, strict=True):
        best = paid[:, 0].topk(keep).indices.sort().values
        kept += numbers[best].tolist()
        own = ops.vic(features[best][None], places[best][None], centers, cutoff_distance=3.0).labels[0]
        labels[numbers[best]] = own + clusters
        clusters += centers
    with vitcop_llava.prune(model, method) as pruner:
        model(**inputs)
        found = pruner.survivors()
    assert found.stages[0].patches.tolist() == sorted(kept)
    assert torch.equal(found.clusters, labels)


@pytest.mark.parametrize("settings", [{}, {"change_share": 1, "cluster_frames": 2}], ids=["paper", "temporal"])
def test_stage_one_of_clips_told_again_slowly(settings: dict[str, Any]) -> None:
    model, inputs, method = build(), given([[2, "clip3", 3]]), replace(METHODS["vitcop"], **settings)
    saliency, keys = shown(model, inputs["pixel_values_videos"][0])
    across = weights(5, 3)
    saliency, keys = (
        torch.einsum("ri,cj,fijd->frcd", across, across, each.view(3, 5, 5, -1)).flatten(1, 2)
        for each in (saliency[..., None], keys)
    )
    plan: Any = method.plan(8, (9,) * 3)
    with vitcop_llava.prune(model, method) as pruner:
        model(**inputs)
        found = pruner.survivors()
    assert len(found.stages[0].patches) == sum(plan.vision.keep)
    for frame in range(3):
        kept = found.stages[0].patches - 9 * frame
        kept = kept[(kept >= 0) & (kept < 9)]
        assert torch.equal(kept, saliency[frame, :, 0].topk(len(kept)).indices.sort().values)
        if not settings:
            assert len(kept) == plan.vision.keep[frame]
            places = torch.cartesian_prod(torch.arange(3), torch.arange(3))[kept] / 3
            centers = plan.vision.clusters[frame]
            own = ops.vic(keys[frame, kept][None], places[None], centers, cutoff_distance=3.0).labels[0]
            assert torch.equal(found.clusters[9 * frame + kept], own + frame * centers)


def entering(model: Any, inputs: dict[str, Any]) -> Tensor:
    """``[L, d]``, what the language model is given."""
    seen: list[Tensor] = []
    layer = model.model.language_model.layers[0]
    handle = layer.register_forward_pre_hook(lambda _, args, kwargs: seen.append(args[0]), with_kwargs=True)
    model(**inputs)
    handle.remove()
    return seen[0][0]


@pytest.mark.parametrize("keep_newline", [False, True])
@pytest.mark.parametrize(
    "row", [[3, LARGE, 5], [3, WIDE, 5], [2, SMALL, 1, LARGE, 3], [1, "clip3", 2]], ids=["large", "wide", "two", "clip"]
)
def test_what_enters_is_what_the_unpruned_model_has_there(row: Row, keep_newline: bool) -> None:
    model, inputs = build(), given([row])
    whole = entering(model, inputs)
    where = torch.isin(inputs["input_ids"][0], torch.tensor([IMAGE, VIDEO]))
    with vitcop_llava.prune(model, METHODS["vitcop"], keep_newline=keep_newline) as pruner:
        found = entering(model, inputs)
        kept, counted = pruner.survivors().stages[0].patches, pruner.report.rows[0]
    newline = (whole == model.model.image_newline).all(1)
    stays = ~where | (newline & keep_newline)
    stays[(where & ~newline).nonzero().flatten()[kept]] = True
    assert int(newline.sum()) == counted.newlines
    assert counted.newlines_kept == counted.newlines * keep_newline
    torch.testing.assert_close(found, whole[stays], atol=1e-6, rtol=1e-5)
    if row[1] == "clip3":
        assert torch.equal(found, whole[stays])


@pytest.mark.parametrize("name", PROMPTS)
@fixed
def test_only_what_is_needed_goes_through_the_projector(method: Any, name: str) -> None:
    model, inputs, seen = build(), given(PROMPTS[name]), list[int]()
    hook = model.model.multi_modal_projector.register_forward_hook(
        lambda _, args, output: seen.append(output[..., 0].numel())
    )
    with vitcop_llava.prune(model, method) as pruner:
        model(**inputs)
        sources = pruner._last.sources.values()  # type: ignore[union-attr]
        images = [image for source in sources for image in source.results.images]
    hook.remove()
    needed = 0
    for image in images:
        assert image.plan.vision is not None
        mixed = image.tiling.frames or image.tiling.is_interpolated
        kept = image.plan.vision.keep[:1] if image.tiling.is_interpolated else image.plan.vision.keep
        whole = image.tiling.frames or len(image.tiling.boxes) - 1
        needed += (0 if image.tiling.frames else sum(kept)) + (25 * whole if mixed else 0)
    assert sum(seen) == needed


def test_visionzip_merges_interpolated_tokens_as_they_would_enter() -> None:
    model, inputs, method = build(), given([[2, LARGE, 3]]), VisionZip(retention_ratio=2 / 3)
    whole, tiling = entering(model, inputs)[3:-3], layouts()[0].tile(*LARGE)
    lines = whole[25:].view(tiling.lines[0], -1, 32)[:, :-1].flatten(0, 1)
    paid, keys = shown(model, inputs["pixel_values"][0])
    plan: Any = method.plan(8, tiling.units)
    made: dict[int, Tensor] = {}
    with vitcop_llava.prune(model, method):
        found = entering(model, inputs)[3 + plan.vision.keep[0] : -3]
    each = (per_unit(tiling, values) for values in (paid[..., None], keys.unflatten(2, (4, 8)).mean(2)))
    counts = zip(plan.vision.keep, plan.vision.clusters, strict=True)
    for (numbers, own, _), (_, features, _), (keep, merged) in [*zip(*each, counts, strict=True)][1:]:
        dominant = own[:, 0].topk(keep - merged).indices.sort().values.tolist()
        rest = [token for token in range(len(numbers)) if token not in dominant]
        targets = rest[:: len(rest) // merged][:merged]
        likeness = functional.normalize(features, dim=1) @ functional.normalize(features[targets], dim=1).T
        tokens = [lines[numbers[token] - 25] for token in dominant]
        for place, target in enumerate(targets):
            joined = [token for token in rest if token not in targets and int(likeness[token].argmax()) == place]
            group = lines[numbers[joined] - 25]
            tokens.append(lines[numbers[target] - 25] + (group.mean(0) if joined else 0))
        # Dominant tokens come first, at the places of all of them in order.
        made |= zip(numbers[sorted(dominant + targets)].tolist(), tokens, strict=True)
    expected = torch.stack([made[number] for number in sorted(made)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", [METHODS["vitcop"], METHODS["visionzip"]], ids=["vitcop", "visionzip"])
@pytest.mark.parametrize("name", ["mixed", "both"])
def test_a_tower_with_cls_is_ranked_by_it(method: Any, name: str) -> None:
    model, rows = build("clip"), PROMPTS[name]
    with vitcop_llava.prune(model, method) as pruner:
        logits = model(**given(rows)).logits
        for number, row in enumerate(rows):
            torch.testing.assert_close(logits[number, -3:], model(**given([row])).logits[0, -3:], atol=2e-4, rtol=1e-3)
        model(**given([[2, LARGE, 3]]))
        found = pruner.survivors().stages[0].patches
    tiles = given([[2, LARGE, 3]])["pixel_values"][0]
    maps = build("clip", "eager").model.vision_tower(tiles, output_attentions=True).attentions[2][:, :, 0, 1:].sum(1)
    tiling = layouts()[0].tile(*LARGE)
    keeps = method.plan(8, tiling.units).vision.keep
    if isinstance(method, ViTCoP):
        best = [
            numbers[paid[:, 0].topk(keep).indices].tolist()
            for (numbers, paid, _), keep in zip(per_unit(tiling, maps[..., None]), keeps, strict=True)
        ]
        assert sorted(number for own in best for number in own) == found.tolist()


@methods
def test_the_device_is_waited_for_no_more_often_than_unpruned(method: Any) -> None:
    for name in PROMPTS:
        inputs = given(PROMPTS[name])
        if isinstance(inputs.get("pixel_values_videos"), list):
            continue  # not what the unpruned model takes
        counts = []
        for pruned in (False, True):
            pruner = vitcop_llava.prune(build(), method) if pruned else None
            with Waits() as waits:
                build()(**inputs)
            counts.append(waits.count)
            if pruner is not None:
                pruner.remove()
        assert counts[1] <= counts[0], (name, counts)


class Waits(TorchFunctionMode):
    """Counts the calls that read values from the device, whoever makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        index = args[1] if name in ("__getitem__", "__setitem__") else ()
        parts = index if isinstance(index, tuple) else (index,)
        by_mask = any(isinstance(part, Tensor) and part.dtype is torch.bool for part in parts)
        self.count += name in READS or by_mask
        return function(*args, **(kwargs or {}))


READS = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__"}
READS |= {"nonzero", "argwhere", "masked_select", "unique", "equal"}


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "no-sizes": ("one", {"image_sizes": None}, "image_sizes must be given with pixel_values"),
    "one-size": (
        "mixed",
        {"image_sizes": torch.tensor([[38, 41]])},
        "batch_num_images must be those of the 1 image_sizes",
    ),
    "shared": ("one", {"batch_num_images": torch.tensor([2])}, "batch_num_images must be those of the 1 image_sizes"),
    "real": ("one", {"batch_num_images": torch.tensor([1.0])}, "batch_num_images must be integers"),
    "text": ("one", {"batch_num_images": "1"}, r"batch_num_images must be \[prompts\]"),
    "tiles": ("one", {"pixel_values": noise(4, 0)}, "pixel_values must have 3 tiles"),
    "pixels": ("one", {"pixel_values": torch.zeros(1, 2, 3, 48, 48)}, "pixel_values must be tiles of 40 x 40 pixels"),
    "size": ("one", {"image_sizes": torch.tensor([[80, 80]])}, "pixel_values must have 5 tiles"),
    "placeholders": (
        "one",
        {"image_sizes": torch.tensor([[40, 20]])},
        "input_ids must hold the 45 image placeholders of image_sizes, got 60",
    ),
    "layer": ("one", {"vision_feature_layer": -2}, "vision_feature_layer must be 3, as configured, got -2"),
    "strategy": ("one", {"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy must be 'full'"),
    "frames": ("clips", {"pixel_values_videos": torch.zeros(2, 3, 3, 24, 24)}, "pixel_values_videos must be of shape"),
    "clips": (
        "clips",
        {"pixel_values_videos": torch.zeros(2, 2, 3, 40, 40)},
        "input_ids must hold 38 placeholders for",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_any_work(case: str) -> None:
    name, change, message = BAD[case]
    model, inputs, runs = build(), given(PROMPTS[name]), list[int]()
    handle = model.model.vision_tower.register_forward_hook(lambda *_: runs.append(1))
    with vitcop_llava.prune(model, METHODS["vitcop"]), pytest.raises((ValueError, TypeError), match=message):
        model(**inputs | change)
    handle.remove()
    assert not runs


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        (
            "vision_aspect_ratio",
            "anyres",
            "model.config: vision_aspect_ratio must be 'anyres_max_' and a number of tiles",
        ),
        ("vision_aspect_ratio", "anyres_max_0", "model.config: vision_aspect_ratio must be"),
        ("image_grid_pinpoints", [[50, 40]], "model.config: image_grid_pinpoints must be"),
        ("vision_feature_layer", [-1, -2], r"model must have a vision tower that Stage I can read, got .*\[-1, -2\]"),
        ("vision_feature_select_strategy", "default", "got vision_feature_select_strategy='default' instead of 'full'"),
    ],
)
def test_models_that_cannot_be_pruned_are_refused(
    setting: str, value: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build()
    monkeypatch.setattr(model.config, setting, value)
    with pytest.raises(ValueError, match=message):
        vitcop_llava.prune(model, METHODS["vitcop"])


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("row", [[2, LARGE, 3], [2, WIDE, 3], [2, SMALL, 1, LARGE, 3], [2, "clip3", 3]], ids=str)
def test_an_observation_is_the_attention_map(tower: str, row: Row) -> None:
    model, inputs = build(tower, "eager"), given([row])
    (seen,) = observe(build(tower), **inputs)
    ids = inputs["input_ids"][0]
    anyres, video = layouts()
    if VIDEO in ids:
        tilings = [video.clip(3)]
    else:
        sizes = [part for part in row if isinstance(part, tuple)]
        tilings = [anyres.tile(*size) if len(sizes) == 1 else anyres.untiled for size in sizes]
    columns, visual = [*((ids == IMAGE) | (ids == VIDEO)).nonzero()[:, 0].tolist()], list[int]()
    for tiling in tilings:
        own, columns = columns[: tiling.placeholders], columns[tiling.placeholders :]
        visual += [column for place, column in enumerate(own) if place not in tiling.newline_places]
    maps = model(**inputs, output_attentions=True).attentions
    paid = torch.stack([each[0].mean(0)[-1, visual] for each in maps])
    torch.testing.assert_close(torch.from_numpy(seen.attention), paid, atol=1e-6, rtol=1e-4)
    assert (seen.grid, seen.has_cls) == (tilings[0].grid, tower == "clip")
    assert len(seen.cutoffs) == len(tilings[0].units)


@pytest.mark.parametrize("size", [LARGE, (115, 77), WIDE])
def test_an_observation_ranks_interpolated_tokens_as_stage_one_does(size: tuple[int, int]) -> None:
    model, inputs = build(), given([[2, size, 3]])
    (seen,) = observe(model, **inputs)
    saliency, _ = shown(model, inputs["pixel_values"][0])
    tiling = layouts()[0].tile(*size)
    if tiling.is_interpolated:
        wanted = [paid[:, 0] for _, paid, _ in per_unit(tiling, saliency[..., None]) if len(paid)]
    else:
        boxes = zip(saliency.view(-1, 5, 5), tiling.boxes, strict=True)
        wanted = [unit[top:bottom, left:right].flatten() for unit, (top, bottom, left, right) in boxes]
        wanted = [unit for unit in wanted if len(unit)]
    assert len(seen.cls_attention) == len(wanted)
    for found, own in zip(seen.cls_attention, wanted, strict=True):
        torch.testing.assert_close(torch.from_numpy(found), own, atol=1e-6, rtol=1e-4)


def test_an_observation_ranks_the_tokens_of_frames() -> None:
    model, inputs = build(), given([[2, "clip3", 3]])
    (seen,) = observe(model, **inputs)
    across, saliency = weights(5, 3), shown(model, inputs["pixel_values_videos"][0])[0]
    wanted = torch.einsum("ri,cj,fij->frc", across, across, saliency.view(3, 5, 5)).flatten(1)
    assert len(seen.cls_attention) == 3
    for found, own in zip(seen.cls_attention, wanted, strict=True):
        torch.testing.assert_close(torch.from_numpy(found), own, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("rows", [[[3, WIDE, 5], [2, SMALL, 1, LARGE, 3], [1, LARGE, 9]], PROMPTS["clips"]], ids=len)
def test_an_observation_of_a_batch_is_that_of_its_rows(rows: list[Row]) -> None:
    together = observe(build(), **given(rows))
    for found, row in zip(together, rows, strict=True):
        (alone,) = observe(build(), **given([row]))
        for name in ("attention", "text_attention", "key_norms"):
            wanted = torch.from_numpy(getattr(alone, name))
            torch.testing.assert_close(torch.from_numpy(getattr(found, name)), wanted, atol=1e-5, rtol=1e-3)
        assert [len(unit) for unit in found.cls_attention] == [len(unit) for unit in alone.cls_attention]
        assert found.cutoffs == pytest.approx(alone.cutoffs)


def test_clips_of_several_lengths_are_observed_one_prompt_at_a_time() -> None:
    with pytest.raises(ValueError, match="pixel_values_videos must be clips of one length to an unpruned model"):
        observe(build(), **given([["clip3", 4], [2, "clip2", 5]]))
