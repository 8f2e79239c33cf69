"""LLaVA-NeXT: the four properties, over sizes of pictures, batches, padding and budgets."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache

import vitcop_llava
from vitcop_llava import EarlyViTCoP, ViTCoP

Inputs = Callable[..., dict[str, Any]]
KEEP_ALL = ViTCoP(retention_ratio=1)
# Tall, wide, tiny, on a pinpoint, a pixel off, and shapes that leave a tile with nothing but padding.
SIZES = [(96, 96), (96, 48), (48, 144), (95, 96), (97, 48), (10, 90), (200, 9), (5, 3), (2, 2), (131, 77), (300, 400)]
pictures = st.sampled_from(SIZES) | st.tuples(st.integers(2, 160), st.integers(2, 160))
rows = st.lists(st.one_of(st.integers(1, 8), pictures), min_size=1, max_size=3).filter(
    lambda row: sum(isinstance(part, tuple) for part in row) <= 2
)
quick = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def check_rows(model: Any, inputs: Inputs, batch: list[list[Any]], side: str, method: Any, **how: Any) -> None:
    """Compares the logits of a batch, at its own tokens, with those of each row alone."""
    together = inputs(batch, side)
    with vitcop_llava.prune(model, method, **how):
        logits = model(**together).logits
        for number, row in enumerate(batch):
            close(logits[number][together["attention_mask"][number].bool()], model(**inputs([row])).logits[0])


@settings(quick, max_examples=80)
@given(
    batch=st.lists(rows.map(lambda row: [*row, 2]), min_size=1, max_size=3),
    side=st.sampled_from(["left", "right"]),
    share=st.sampled_from(["1/3", "2/9", "1/6"]),
    keep_newline=st.booleans(),
)
@example(batch=[[(96, 96), 2], [3, (10, 90), 2], [7]], side="left", share="1/6", keep_newline=True)
@example(batch=[[(300, 400), 4], [2, (5, 3), 1, (95, 96), 2]], side="right", share="1/3", keep_newline=False)
def test_batch_equals_rows(
    next_model: Any, next_inputs: Inputs, budget: Any, batch: Any, side: str, share: str, keep_newline: bool
) -> None:
    check_rows(next_model, next_inputs, batch, side, budget(share), keep_newline=keep_newline)


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_batch_equals_rows_for_other_language_models(
    build_next: Callable[..., Any], next_inputs: Inputs, budget: Any, kind: str, attention: str
) -> None:
    batch: list[list[Any]] = [[2, (96, 96), 3], [(10, 90), 3, (131, 77), 4], [9]]
    check_rows(build_next(kind, attention), next_inputs, batch, "left", budget("2/9"))


VARIANTS: dict[str, dict[str, Any]] = {
    "attention": {"saliency": "attention"},
    "official": {"compat": "official"},
    "chained": {"counts": "chained"},
    "vision-hidden": {"vic_features": "vision_hidden"},
    "no-stage-one": {"share": "1/3", "stage_one": False},
    "padding-alone": {"share": "1/3", "stage_one": False, "clustering": False},
    "no-stage-three": {"stage_three": False},
    "no-clusters": {"clustering": False},
    "tokens": {"retained_tokens": 24, "retention_ratio": None},
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_batch_equals_rows_for_variants(
    next_model: Any, next_inputs: Inputs, budget: Any, variant: str, side: str
) -> None:
    batch: list[list[Any]] = [[2, (96, 96), 3], [(10, 90), 3, (131, 77), 4], [9], [(200, 9), 1, (5, 3), 2]]
    method = budget(**{"share": "1/6", **VARIANTS[variant]})
    check_rows(next_model, next_inputs, batch, side, method)


@pytest.mark.parametrize("ranking", ["vision", "layer0"])
def test_cutting_before_the_language_model_has_the_properties(
    next_model: Any, next_inputs: Inputs, ranking: Any
) -> None:
    batch: list[list[Any]] = [[2, (96, 96), 3], [(10, 90), 3, (131, 77), 4], [9], [(200, 9), 1, (5, 3), 2]]
    method = EarlyViTCoP(retention_ratio=1 / 3, ranking=ranking)
    check_rows(next_model, next_inputs, batch, "left", method)
    inputs = next_inputs(batch[1:2])
    with vitcop_llava.prune(next_model, method) as pruner:
        made = next_model.generate(**inputs, max_new_tokens=3, output_logits=True, return_dict_in_generate=True)
        (row,) = pruner.report.rows
        assert row.plan is not None
        assert len(set(row.plan.tokens_per_layer)) == 1
        again = {**inputs, "input_ids": made.sequences, "attention_mask": torch.ones_like(made.sequences)}
        close(torch.cat(made.logits), next_model(**again).logits[0, -4:-1])


@settings(quick, max_examples=60)
@given(row=rows.map(lambda row: [*row, 2]), share=st.sampled_from(["1/3", "2/9", "1/6"]), keep_newline=st.booleans())
@example(row=[(10, 90), 2, (96, 96), 3], share="1/6", keep_newline=True)
def test_cached_decoding_equals_recomputing(
    next_model: Any, next_inputs: Inputs, budget: Any, row: Any, share: str, keep_newline: bool
) -> None:
    inputs, how = next_inputs([row]), {"max_new_tokens": 3, "do_sample": False}
    with vitcop_llava.prune(next_model, budget(share), keep_newline=keep_newline):
        output = next_model.generate(**inputs, **how, output_logits=True, return_dict_in_generate=True)
        again = {**inputs, "input_ids": output.sequences, "attention_mask": torch.ones_like(output.sequences)}
        close(torch.cat(output.logits), next_model(**again).logits[0, -4:-1])


@settings(quick, max_examples=60)
@given(
    batch=st.lists(rows.map(lambda row: [*row, 2]), min_size=1, max_size=3),
    side=st.sampled_from(["left", "right"]),
    keep_newline=st.booleans(),
)
def test_keep_all_equals_unpatched(
    next_model: Any, next_inputs: Inputs, batch: Any, side: str, keep_newline: bool
) -> None:
    inputs = next_inputs(batch, side)
    with vitcop_llava.prune(next_model, KEEP_ALL, keep_newline=keep_newline) as pruner:
        kept = next_model(**inputs, output_hidden_states=True)
        images = [row.images for row in pruner.report.rows]
    plain = next_model(**inputs, output_hidden_states=True)
    assert torch.equal(kept.logits, plain.logits)
    assert all(torch.equal(a, b) for a, b in zip(kept.hidden_states, plain.hidden_states, strict=True))
    if any(images):
        assert images == [sum(isinstance(part, tuple) for part in row) for row in batch]


def snapshot(model: Any) -> dict[str, Any]:
    return {name: (sorted(vars(module)), dict(module._forward_hooks)) for name, module in model.named_modules()}


@pytest.mark.parametrize("method", ["all", "sixth"])
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_block_leaves_nothing(
    next_model: Any, next_inputs: Inputs, budget: Any, method: str, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = next_inputs([[2, (131, 77), 3]])
    before, wanted = snapshot(next_model), next_model(**inputs).logits

    def run() -> None:
        with vitcop_llava.prune(next_model, KEEP_ALL if method == "all" else budget("1/6")):
            assert "get_image_features" in vars(next_model.model)
            next_model(**inputs)
            if fails:
                broken = {**inputs, "image_sizes": torch.tensor([[96, 96], [96, 96]])}
                next_model(**broken)

    if fails:
        with pytest.raises(ValueError, match="image_sizes must be as many as the 1 images of pixel_values, got 2"):
            run()
    else:
        run()
    assert snapshot(next_model) == before
    assert torch.equal(next_model(**inputs).logits, wanted)


def test_beam_search_of_batch_equals_rows(next_model: Any, next_inputs: Inputs, budget: Any) -> None:
    rows: list[list[Any]] = [[2, (96, 96), 3], [(10, 90), 4]]
    how = {
        "max_new_tokens": 3,
        "do_sample": False,
        "num_beams": 3,
        "output_scores": True,
        "return_dict_in_generate": True,
    }
    with vitcop_llava.prune(next_model, budget("1/6")):
        together = next_model.generate(**next_inputs(rows), **how)
        for number, row in enumerate(rows):
            alone = next_model.generate(**next_inputs([row]), **how)
            close(together.sequences_scores[number], alone.sequences_scores[0])
            assert torch.equal(together.sequences[number, -3:], alone.sequences[0, -3:])


def test_later_turns_equal_one_prompt(next_model: Any, next_inputs: Inputs, budget: Any) -> None:
    """A second turn in text, and a third: both as if the conversation were one prompt."""
    first, words = next_inputs([[2, (131, 77), 4]]), next_inputs([[5]])["input_ids"][:, 1:]
    with vitcop_llava.prune(next_model, budget("1/6")):
        cache, ids = DynamicCache(config=next_model.config), first["input_ids"]
        next_model(**first, past_key_values=cache)
        for _ in range(2):
            turn = next_model(input_ids=words, past_key_values=cache).logits
            ids = torch.cat([ids, words], dim=1)
            whole = {**first, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            close(turn, next_model(**whole).logits[:, -words.shape[1] :])
        assert cache.get_seq_length() == ids.shape[1]


@pytest.mark.parametrize("keep_newline", [False, True])
def test_image_in_a_later_turn_is_pruned_on_its_own_budget(
    next_model: Any, next_inputs: Inputs, budget: Any, keep_newline: bool
) -> None:
    first: list[list[Any]] = [[2, (131, 77), 4], [9]]
    second: list[list[Any]] = [[(10, 90), 4], [(10, 90), 4]]
    with vitcop_llava.prune(next_model, budget("1/6"), keep_newline=keep_newline) as pruner:
        cache, batch, more = DynamicCache(), next_inputs(first), next_inputs(second)
        next_model(**batch, past_key_values=cache)
        more["attention_mask"] = torch.cat([batch["attention_mask"], more["attention_mask"]], dim=1)
        turn = next_model(**more, past_key_values=cache).logits
        assert [row.plan for row in pruner.report.rows] == [budget("1/6").plan(8, (36, 12, 12))] * 2
        for row in range(2):
            alone = DynamicCache()
            next_model(**next_inputs(first[row : row + 1]), past_key_values=alone)
            own = next_inputs(second[row : row + 1])
            del own["attention_mask"]
            close(turn[row], next_model(**own, past_key_values=alone).logits[0])


def test_gradients_reach_tower_and_newline(next_model: Any, next_inputs: Inputs, budget: Any) -> None:
    inputs = next_inputs([[2, (131, 77), 4], [(10, 90), 3]])
    with torch.enable_grad(), vitcop_llava.prune(next_model, budget("1/6"), keep_newline=True):
        next_model(**inputs).logits[:, -1].square().sum().backward()
    for name, parameter in next_model.named_parameters():
        if name.endswith(("image_newline", "patch_embedding.weight", "linear_1.weight", "embed_tokens.weight")):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all()
            assert parameter.grad.abs().sum() > 0, name
    next_model.zero_grad(set_to_none=True)
