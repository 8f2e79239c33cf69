"""A batch gives every row what the row gets alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import vitcop_llava

BUDGETS = ["1/3", "2/9", "1/9", "1/18"]
VARIANTS: dict[str, dict[str, Any]] = {
    "attention": {"saliency": "attention"},
    "official": {"compat": "official"},
    "no-stage-one": {"share": "1/3", "stage_one": False},
    "no-stage-three": {"stage_three": False},
    "no-clusters": {"clustering": False},
}
Prompt = Callable[..., Tensor]
Pad = Callable[..., dict[str, Tensor]]


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def check_rows(model: Any, method: Any, rows: list[Tensor], images: Tensor, batch: dict[str, Tensor]) -> None:
    """Compares the logits of a batch, at its own tokens, with those of each row alone."""
    counts = [int((row == 99).sum()) // 144 for row in rows]
    with vitcop_llava.prune(model, method):
        together = model(**batch, pixel_values=images if len(images) else None).logits
        for number, row in enumerate(rows):
            own = images[sum(counts[:number]) : sum(counts[: number + 1])]
            alone = model(input_ids=row, pixel_values=own if len(own) else None).logits[0]
            close(together[number][batch["attention_mask"][number].bool()], alone)


@pytest.mark.parametrize("share", BUDGETS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_batch_equals_rows(
    build: Callable[..., Any],
    prompt: Prompt,
    pictures: Prompt,
    pad: Pad,
    budget: Any,
    kind: str,
    attention: str,
    share: str,
) -> None:
    rows = [prompt(2, "image", 8), prompt("image", 3, "image", 4, seed=1), prompt(20, seed=2), prompt(9, "image", 1)]
    model = build(kind, attention, kv_heads=4 if kind == "mistral" else 2)
    check_rows(model, budget(share), rows, pictures(4), pad(rows, "left"))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_batch_equals_rows_for_variants(
    model: Any, prompt: Prompt, pictures: Prompt, pad: Pad, budget: Any, variant: str, side: str
) -> None:
    rows = [prompt(2, "image", 8), prompt("image", 3, "image", 4, seed=1), prompt(20, seed=2)]
    check_rows(model, budget(**VARIANTS[variant]), rows, pictures(3), pad(rows, side))


@pytest.mark.parametrize("variant", VARIANTS)
def test_uniform_batch_equals_rows_for_variants(
    model: Any, prompt: Prompt, pictures: Prompt, pad: Pad, budget: Any, variant: str
) -> None:
    rows = [prompt(2, "image", 8), prompt("image", 30, seed=1)]
    check_rows(model, budget(**VARIANTS[variant]), rows, pictures(2), pad(rows, "left"))


layouts = st.lists(
    st.lists(st.one_of(st.integers(1, 25), st.just("image")), min_size=1, max_size=4).filter(
        lambda parts: parts.count("image") <= 2
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(layout=layouts, side=st.sampled_from(["left", "right"]), share=st.sampled_from(BUDGETS))
def test_any_layout_equals_its_rows(
    model: Any,
    prompt: Prompt,
    pictures: Prompt,
    pad: Pad,
    budget: Any,
    layout: list[list[int | str]],
    side: str,
    share: str,
) -> None:
    rows = [prompt(*parts, 2, seed=number) for number, parts in enumerate(layout)]
    images = sum(parts.count("image") for parts in layout)
    check_rows(model, budget(share), rows, pictures(images), pad(rows, side))


@pytest.mark.parametrize("share", ["1/3", "1/9"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_generating_batch_equals_rows(
    build: Callable[..., Any], prompt: Prompt, pictures: Prompt, pad: Pad, budget: Any, kind: str, share: str
) -> None:
    model, images = build(kind), pictures(3)
    rows = [prompt(2, "image", 8), prompt("image", 3, "image", 4, seed=1), prompt(20, seed=2)]
    how: dict[str, Any] = {
        "max_new_tokens": 4,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    with vitcop_llava.prune(model, budget(share)):
        together = model.generate(**pad(rows), pixel_values=images, **how)
        for number, (row, own) in enumerate(zip(rows, (images[:1], images[1:], None), strict=True)):
            seen = {} if own is None else {"pixel_values": own}
            alone = model.generate(input_ids=row, attention_mask=torch.ones_like(row), **seen, **how)
            close(torch.stack(together.logits)[:, number], torch.cat(alone.logits))


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}], ids=["3", "2-of-2"])
def test_beam_search_of_batch_equals_rows(
    model: Any, prompt: Prompt, pictures: Prompt, pad: Pad, budget: Any, how: dict[str, int]
) -> None:
    rows, images = [prompt(2, "image", 8), prompt("image", 15, seed=1)], pictures(2)
    settings_ = {"max_new_tokens": 4, "do_sample": False, "output_scores": True, "return_dict_in_generate": True, **how}
    returned = how.get("num_return_sequences", 1)
    with vitcop_llava.prune(model, budget("2/9")):
        together = model.generate(**pad(rows), pixel_values=images, **settings_)
        for number, row in enumerate(rows):
            alone = model.generate(
                input_ids=row,
                attention_mask=torch.ones_like(row),
                pixel_values=images[number : number + 1],
                **settings_,
            )
            own = slice(number * returned, (number + 1) * returned)
            close(together.sequences_scores[own], alone.sequences_scores)
            assert torch.equal(together.sequences[own, -4:], alone.sequences[:, -4:])


def test_return_sequences_start_from_the_same_prefill(
    model: Any, prompt: Prompt, pictures: Prompt, pad: Pad, budget: Any
) -> None:
    rows = [prompt(2, "image", 8), prompt("image", 15, seed=1)]
    with vitcop_llava.prune(model, budget()):
        torch.manual_seed(0)
        sampled = model.generate(
            **pad(rows),
            pixel_values=pictures(2),
            max_new_tokens=3,
            do_sample=True,
            num_return_sequences=3,
            output_logits=True,
            return_dict_in_generate=True,
        )
        first = model(**pad(rows), pixel_values=pictures(2)).logits[:, -1]
        close(sampled.logits[0], first.repeat_interleave(3, dim=0))
        again = {"input_ids": sampled.sequences, "attention_mask": pad(rows)["attention_mask"]}
        again["attention_mask"] = torch.nn.functional.pad(
            again["attention_mask"].repeat_interleave(3, dim=0), (0, 3), value=1
        )
        recomputed = model(**again, pixel_values=pictures(2).repeat_interleave(3, dim=0)).logits
        close(torch.stack(sampled.logits, 1), recomputed[:, -4:-1])


def test_sampling_draws_the_same_from_the_same_logits(
    model: Any, prompt: Prompt, pictures: Prompt, budget: Any
) -> None:
    ids, drawn = prompt(2, "image", 8), []
    with vitcop_llava.prune(model, budget()):
        for use_cache in (True, False):
            torch.manual_seed(3)
            given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures()}
            drawn.append(model.generate(**given, max_new_tokens=6, do_sample=True, use_cache=use_cache))
    assert torch.equal(*drawn)
