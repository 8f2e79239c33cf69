"""The other methods inside a model: the properties that every method has."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import vitcop_llava
from vitcop_llava import DivPrune, EarlyViTCoP, FastV, PyramidDrop, SparseVLM, VisionZip, VisPruner

Make = Callable[..., Tensor]
METHODS: dict[str, Any] = {
    "fastv": FastV(retained_tokens=48),
    "pyramiddrop": PyramidDrop(retained_tokens=48),
    "pyramiddrop-published": PyramidDrop(ratios=(0.5, 0.25, 0.125)),
    "sparsevlm": SparseVLM(retained_tokens=48),
    "sparsevlm-given": SparseVLM(counts=(60, 30, 10), layers=(2, 3, 6)),
    "visionzip": VisionZip(retained_tokens=48),
    "visionzip-given": VisionZip(counts=(9, 3)),
    "divprune": DivPrune(retained_tokens=24),
    "vispruner": VisPruner(retained_tokens=24),
    "early": EarlyViTCoP(retained_tokens=48, cutoff_distance=3.0),
    "early-layer0": EarlyViTCoP(retained_tokens=48, cutoff_distance=3.0, ranking="layer0"),
}
methods = pytest.mark.parametrize("name", METHODS)
families = pytest.mark.parametrize("kind", [FastV, PyramidDrop, SparseVLM, VisionZip, DivPrune, VisPruner, EarlyViTCoP])


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)


@families
def test_keep_all_equals_unpatched(model: Any, prompt: Make, pictures: Make, kind: Any) -> None:
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    plain = model(**given, output_hidden_states=True)
    with vitcop_llava.prune(model, kind(retention_ratio=1)):
        kept = model(**given, output_hidden_states=True)
    assert torch.equal(kept.logits, plain.logits)
    assert all(torch.equal(a, b) for a, b in zip(kept.hidden_states, plain.hidden_states, strict=True))


@methods
@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_equals_rows(model: Any, prompt: Make, pictures: Make, pad: Any, name: str, side: str) -> None:
    rows = [prompt(2, "image", 8), prompt("image", 3, "image", 4, seed=1), prompt(20, seed=2), prompt(9, "image", 1)]
    images, batch, start = pictures(4), pad(rows, side), 0
    with vitcop_llava.prune(model, METHODS[name]):
        together = model(**batch, pixel_values=images).logits
        for number, row in enumerate(rows):
            stop = start + int((row == 99).sum()) // 144
            own, start = images[start:stop], stop
            alone = model(input_ids=row, pixel_values=own if len(own) else None).logits[0]
            close(together[number][batch["attention_mask"][number].bool()], alone)


@methods
@pytest.mark.parametrize("side", ["left", "right"])
def test_uniform_batch_equals_rows(model: Any, prompt: Make, pictures: Make, pad: Any, name: str, side: str) -> None:
    rows, images = [prompt(2, "image", 8), prompt("image", 30, seed=1)], pictures(2)
    batch = pad(rows, side)
    with vitcop_llava.prune(model, METHODS[name]):
        together = model(**batch, pixel_values=images).logits
        for number, row in enumerate(rows):
            alone = model(input_ids=row, pixel_values=images[number : number + 1]).logits[0]
            close(together[number][batch["attention_mask"][number].bool()], alone)


@methods
def test_generating_batch_equals_rows(model: Any, prompt: Make, pictures: Make, pad: Any, name: str) -> None:
    rows, images = [prompt(2, "image", 8), prompt("image", 3, "image", 4, seed=1), prompt(20, seed=2)], pictures(3)
    how: dict[str, Any] = {
        "max_new_tokens": 4,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    with vitcop_llava.prune(model, METHODS[name]):
        together = model.generate(**pad(rows), pixel_values=images, **how)
        for number, (row, own) in enumerate(zip(rows, (images[:1], images[1:], None), strict=True)):
            seen = {} if own is None else {"pixel_values": own}
            alone = model.generate(input_ids=row, attention_mask=torch.ones_like(row), **seen, **how)
            close(torch.stack(together.logits)[:, number], torch.cat(alone.logits))


@methods
def test_beams_carry_their_own_positions(model: Any, prompt: Make, pictures: Make, pad: Any, name: str) -> None:
    rows, images = [prompt(2, "image", 8), prompt("image", 3, "image", 4, seed=1)], pictures(3)
    how: dict[str, Any] = {"max_new_tokens": 4, "num_beams": 3, "output_scores": True, "return_dict_in_generate": True}
    with vitcop_llava.prune(model, METHODS[name]):
        together = model.generate(**pad(rows), pixel_values=images, do_sample=False, **how)
        for number, (row, own) in enumerate(zip(rows, (images[:1], images[1:]), strict=True)):
            alone = model.generate(
                input_ids=row, attention_mask=torch.ones_like(row), pixel_values=own, do_sample=False, **how
            )
            close(together.sequences_scores[number], alone.sequences_scores[0])


@methods
def test_prefill_without_a_cache_equals_one_with(model: Any, prompt: Make, pictures: Make, name: str) -> None:
    given = {"input_ids": prompt(3, "image", 4, "image", 8), "pixel_values": pictures(2)}
    with vitcop_llava.prune(model, METHODS[name]):
        close(model(**given, use_cache=False).logits, model(**given, use_cache=True).logits)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
@methods
def test_attention_backends_agree(
    build: Any, prompt: Make, pictures: Make, name: str, kind: str, attention: str
) -> None:
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    found = []
    for model in (build(kind), build(kind, attention)):
        with vitcop_llava.prune(model, METHODS[name]):
            found.append(model(**given).logits)
    close(*found)


@pytest.mark.parametrize("name", ["visionzip", "visionzip-given", "divprune", "vispruner"])
def test_decoding_equals_recomputing(model: Any, prompt: Make, pictures: Make, name: str) -> None:
    ids, images = prompt(3, "image", 4, "image", 8), pictures(2)
    how: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "output_logits": True}
    with vitcop_llava.prune(model, METHODS[name]):
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=images,
            return_dict_in_generate=True,
            **how,
        )
        recomputed = model(input_ids=output.sequences, pixel_values=images, use_cache=False).logits
    close(torch.stack(output.logits, 1), recomputed[:, -6:-1])


@methods
def test_cache_lengths_and_bytes_equal_the_plans(model: Any, prompt: Make, pictures: Make, name: str) -> None:
    ids = prompt(3, "image", 4, "image", 8)
    text = ids.shape[1] - 288
    with vitcop_llava.prune(model, METHODS[name]) as pruner:
        layers = model(input_ids=ids, pixel_values=pictures(2)).past_key_values.layers
        plan: Any = pruner.report.rows[0].plan
        shape = pruner.report.shape
        assert [len(stage.patches) for stage in pruner.survivors().stages] == [
            stage.tokens for stage in pruner.report.rows[0].stages
        ]
    assert [layer.keys.shape[2] for layer in layers] == [text + tokens for tokens in plan.tokens_per_layer]
    assert sum(layer.keys.nbytes + layer.values.nbytes for layer in layers) == plan.kv_bytes(shape, text, 4)
    assert {layer.get_seq_length() for layer in layers} == {ids.shape[1]}


@methods
def test_second_turn_equals_decoding_it_token_by_token(model: Any, prompt: Make, pictures: Make, name: str) -> None:
    ids, more = prompt(3, "image", 8), prompt(5, seed=3)
    found = []
    for pieces in ([more], more.split(1, dim=1)):
        cache = DynamicCache(config=model.config)
        with vitcop_llava.prune(model, METHODS[name]):
            model(input_ids=ids, pixel_values=pictures(), past_key_values=cache)
            found.append(torch.cat([model(input_ids=piece, past_key_values=cache).logits for piece in pieces], dim=1))
    close(*found)


@methods
def test_second_image_joins_a_pruned_cache(model: Any, prompt: Make, pictures: Make, pad: Any, name: str) -> None:
    images = pictures(4)
    with vitcop_llava.prune(model, METHODS[name]):
        turns = [(prompt(3, "image", 8), prompt(2, "image", 4, seed=5)), (prompt(9, "image", 2), prompt("image", 6))]
        alone = []
        for number, (one, two) in enumerate(turns):
            cache = DynamicCache(config=model.config)
            model(input_ids=one, pixel_values=images[number : number + 1], past_key_values=cache)
            own = images[2 + number : 3 + number]
            alone.append(model(input_ids=two, pixel_values=own, past_key_values=cache).logits[0])
        cache = DynamicCache(config=model.config)
        first, second = pad([one for one, _ in turns]), pad([two for _, two in turns])
        model(**first, pixel_values=images[:2], past_key_values=cache)
        mask = torch.cat([first["attention_mask"], second["attention_mask"]], dim=1)
        given = {"input_ids": second["input_ids"], "attention_mask": mask, "pixel_values": images[2:]}
        together = model(**given, past_key_values=cache).logits
    for number, wanted in enumerate(alone):
        close(together[number][second["attention_mask"][number].bool()], wanted)


@methods
def test_model_is_restored(model: Any, prompt: Make, pictures: Make, name: str) -> None:
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    before = model(**given).logits
    hooks = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()]
    with vitcop_llava.prune(model, METHODS[name]):
        pruned = model(**given).logits
    assert hooks == [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()]
    assert torch.equal(model(**given).logits, before)
    assert not torch.equal(pruned, before)


@methods
def test_report_has_every_cut(model: Any, prompt: Make, pictures: Make, name: str) -> None:
    with vitcop_llava.prune(model, METHODS[name]) as pruner:
        model(input_ids=prompt(3, "image", 8), pixel_values=pictures())
        report = pruner.report
    assert "Stage" not in str(report)
    plan, stages = report.rows[0].plan, report.rows[0].stages
    assert plan is not None
    assert [stage.tokens for stage in stages] == sorted(set(plan.tokens_per_layer) - {144}, reverse=True)
    assert stages[0].name == ("Cut 1" if plan.decoder else "Vision cut")


@pytest.mark.parametrize("kind", [FastV, PyramidDrop, SparseVLM, VisionZip, DivPrune, VisPruner])
@pytest.mark.parametrize("side", ["left", "right"])
def test_tiles_in_a_batch_equal_rows(next_model: Any, next_inputs: Any, kind: Any, side: str) -> None:
    batch: list[list[Any]] = [[2, (96, 96), 3], [(10, 90), 2, (131, 77), 4], [9], [2, (200, 9), 1]]
    together = next_inputs(batch, side)
    with vitcop_llava.prune(next_model, kind(retention_ratio=1 / 3)):
        logits = next_model(**together).logits
        for number, row in enumerate(batch):
            alone = next_model(**next_inputs([row])).logits[0]
            close(logits[number][together["attention_mask"][number].bool()], alone)


@pytest.mark.parametrize("kind", [FastV, PyramidDrop, SparseVLM, VisionZip, DivPrune, VisPruner])
def test_small_image_within_the_budget_runs_unpruned_beside_others(
    next_model: Any, next_inputs: Any, kind: Any
) -> None:
    small, large = [2, (10, 90), 3], [2, (96, 96), 3]
    with vitcop_llava.prune(next_model, kind(retention_ratio=1)) as pruner:
        plain = next_model(**next_inputs([small])).logits[0]
        plan = pruner.report.rows[0].plan
    assert plan is not None
    given = next_inputs([large, small])
    with vitcop_llava.prune(next_model, kind(retained_tokens=plan.visual_tokens)):
        together = next_model(**given).logits[1][given["attention_mask"][1].bool()]
    close(together, plain)


@methods
def test_gradients_flow_through_what_is_kept(model: Any, prompt: Make, pictures: Make, name: str) -> None:
    images = pictures().clone().requires_grad_()
    with torch.enable_grad(), vitcop_llava.prune(model, METHODS[name]):
        model(input_ids=prompt(3, "image", 8), pixel_values=images).logits[0, -1].sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert images.grad.any()
    model.zero_grad()
