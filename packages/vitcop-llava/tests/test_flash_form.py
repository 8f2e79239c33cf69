"""The form of FlashAttention-2: masks are 2-D, padding is taken out, and position ids may mean packed sequences."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, DynamicCache
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

import vitcop_llava

Make = Callable[..., Tensor]
NAME = "flash_form_of_the_tests"


def flash_form(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
) -> tuple[Tensor, None]:
    """Attention row by row over what the 2-D mask leaves, causal from the last token back."""
    rows, heads, queries, width = query.shape
    repeats = heads // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    assert attention_mask is None or attention_mask.shape == (rows, key.shape[2])
    positions = given.get("position_ids")
    if rows == 1 and queries > 1 and attention_mask is None and positions is not None:
        assert bool((positions.diff() == 1).all()), "would be taken for packed sequences"
    output = query.new_zeros(rows, queries, heads, width)
    for row in range(rows):
        keep = torch.ones(key.shape[2], dtype=torch.bool) if attention_mask is None else attention_mask[row]
        asked, held = query[row][:, keep[-queries:]], (key[row][:, keep], value[row][:, keep])
        causal = torch.ones(asked.shape[1], held[0].shape[1], dtype=torch.bool).tril(held[0].shape[1] - asked.shape[1])
        found = scaled_dot_product_attention(asked, *held, attn_mask=causal, scale=given["scaling"])
        output[row, keep[-queries:]] = found.transpose(0, 1)
    return output, None


@pytest.fixture(scope="module")
def flash(build: Any) -> Iterator[Any]:
    AttentionInterface.register(NAME, flash_form)
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    yield build(attention=NAME)
    AttentionInterface._global_mapping.pop(NAME)
    AttentionMaskInterface._global_mapping.pop(NAME)


@pytest.mark.parametrize("share", ["1/3", "1/9"])
@pytest.mark.parametrize("side", ["left", "right", "uniform"])
def test_flash_form_equals_sdpa(
    flash: Any, build: Any, prompt: Make, pictures: Make, pad: Any, budget: Any, share: str, side: str
) -> None:
    rows = [prompt(2, "image", 8), prompt("image", 3, "image", 4, seed=1), prompt(20, seed=2)]
    rows = [rows[0], prompt(5, "image", 5, seed=4), rows[0]] if side == "uniform" else rows
    batch, more, found = pad(rows, "left" if side == "uniform" else side), prompt(4, seed=3).expand(3, -1), []
    mask = torch.cat([batch["attention_mask"], torch.ones_like(more)], dim=1)
    for model in (flash, build()):
        with vitcop_llava.prune(model, budget(share)):
            cache = DynamicCache(config=model.config)
            first = model(**batch, pixel_values=pictures(3), past_key_values=cache).logits
            turn = model(input_ids=more, attention_mask=mask, past_key_values=cache).logits
            found.append(torch.cat([first[batch["attention_mask"].bool()], turn.flatten(0, 1)]))
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)


@pytest.mark.parametrize("images", [1, 2])
def test_flash_form_generates_like_sdpa(
    flash: Any, build: Any, prompt: Make, pictures: Make, budget: Any, images: int
) -> None:
    ids, found = prompt(3, *["image", 4] * images), []
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures(images)}
    how: dict[str, Any] = {"max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}
    for model in (flash, build()):
        for use_cache in (True, False):
            with vitcop_llava.prune(model, budget()):
                found.append(torch.cat(model.generate(**given, **how, use_cache=use_cache, do_sample=False).logits))
    for logits in found[1:]:
        torch.testing.assert_close(logits, found[0], atol=1e-5, rtol=0)
