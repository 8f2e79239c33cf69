"""Further turns on a live cache, several caches at once, threads, copies."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import vitcop_llava
from vitcop_llava import ViTCoP

Make = Callable[..., Tensor]


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("share", ["1/3", "1/9"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_text_turn_on_live_cache_equals_recomputing(
    build: Callable[..., Any], prompt: Make, pictures: Make, budget: Any, kind: str, share: str
) -> None:
    model, ids, more = build(kind), prompt(3, "image", 8), prompt(6, seed=5)
    with vitcop_llava.prune(model, budget(share)):
        cache = DynamicCache(config=model.config)
        model(input_ids=ids, pixel_values=pictures(), past_key_values=cache)
        assert cache.get_seq_length() == ids.shape[1]
        turn = model(input_ids=more, past_key_values=cache).logits
        both = torch.cat([ids, more], dim=1)
        close(turn, model(input_ids=both, pixel_values=pictures()).logits[:, -more.shape[1] :])
        assert cache.get_seq_length() == both.shape[1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_text_turn_of_a_padded_batch_equals_recomputing(
    model: Any, prompt: Make, pictures: Make, pad: Any, budget: Any, side: str
) -> None:
    rows = [prompt(2, "image", 8), prompt("image", 3, "image", 4, seed=1), prompt(20, seed=2)]
    batch, more = pad(rows, side), torch.cat([prompt(6, seed=seed) for seed in range(3)])
    with vitcop_llava.prune(model, budget()):
        cache = DynamicCache()
        model(**batch, pixel_values=pictures(3), past_key_values=cache)
        mask = torch.cat([batch["attention_mask"], torch.ones_like(more)], dim=1)
        turn = model(input_ids=more, attention_mask=mask, past_key_values=cache).logits
        ids = torch.cat([batch["input_ids"], more], dim=1)
        close(turn, model(input_ids=ids, attention_mask=mask, pixel_values=pictures(3)).logits[:, -7:])


def test_text_turn_by_generate_equals_recomputing(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    ids = prompt(3, "image", 8)
    how: dict[str, Any] = {
        "max_new_tokens": 4,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    with vitcop_llava.prune(model, budget()):
        first = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pictures(), **how)
        asked = torch.cat([first.sequences, prompt(5, seed=4)], dim=1)
        second = model.generate(
            input_ids=asked, attention_mask=torch.ones_like(asked), past_key_values=first.past_key_values, **how
        )
        recomputed = model(input_ids=second.sequences, pixel_values=pictures()).logits[:, -5:-1]
        close(torch.stack(second.logits, 1), recomputed)


def test_image_after_text_turn_equals_one_prompt(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    text, ids = prompt(9, seed=3), prompt(3, "image", 8)
    with vitcop_llava.prune(model, budget()):
        cache = DynamicCache(config=model.config)
        model(input_ids=text, past_key_values=cache)
        turn = model(input_ids=ids, pixel_values=pictures(), past_key_values=cache).logits
        both = model(input_ids=torch.cat([text, ids], dim=1), pixel_values=pictures()).logits
        close(turn[:, -8:], both[:, -8:])


@pytest.mark.parametrize("settings", [{}, {"saliency": "attention"}, {"compat": "official"}], ids=str)
def test_image_turn_of_a_batch_equals_its_rows(
    model: Any, prompt: Make, pictures: Make, pad: Any, budget: Any, settings: dict[str, Any]
) -> None:
    first, second = [prompt(2, "image", 8), prompt(12, seed=1)], [prompt("image", 4, seed=2), prompt("image", 4)]
    with vitcop_llava.prune(model, budget(**settings)):
        cache, batch, more = DynamicCache(), pad(first), torch.cat(second)
        model(**batch, pixel_values=pictures(1), past_key_values=cache)
        mask = torch.cat([batch["attention_mask"], torch.ones_like(more)], dim=1)
        turn = model(
            input_ids=more, attention_mask=mask, pixel_values=pictures(2, seed=1), past_key_values=cache
        ).logits
        for row, own in enumerate((pictures(1), None)):
            alone = DynamicCache()
            model(input_ids=first[row], pixel_values=own, past_key_values=alone)
            image = pictures(2, seed=1)[row : row + 1]
            close(turn[row], model(input_ids=second[row], pixel_values=image, past_key_values=alone).logits[0])


def test_interleaved_conversations_stay_apart(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    asked = [prompt(3, "image", 8), prompt("image", 2, "image", 5, seed=1)]
    seen, more = [pictures(1), pictures(2, seed=1)], [prompt(3, seed=6), prompt(4, seed=7)]
    with vitcop_llava.prune(model, budget()):
        caches = [DynamicCache(config=model.config) for _ in asked]
        for ids, images, cache in zip(asked, seen, caches, strict=True):
            model(input_ids=ids, pixel_values=images, past_key_values=cache)
        for _ in range(2):
            turns = [model(input_ids=new, past_key_values=c).logits for new, c in zip(more, caches, strict=True)]
        for ids, images, new, turn in zip(asked, seen, more, turns, strict=True):
            whole = model(input_ids=torch.cat([ids, new, new], dim=1), pixel_values=images).logits
            close(turn, whole[:, -new.shape[1] :])


def test_threads_on_one_pruned_model_stay_apart(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    asked = [prompt(3, "image", 8), prompt("image", 2, "image", 5, seed=1)] * 2
    seen = [pictures(1), pictures(2, seed=1)] * 2

    def answer(ids: Tensor, images: Tensor) -> Tensor:
        with torch.no_grad():
            given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": images}
            output = model.generate(
                **given, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        return torch.cat(output.logits)

    with vitcop_llava.prune(model, budget()):
        alone = [answer(ids, images) for ids, images in zip(asked, seen, strict=True)]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(answer, asked, seen))
    for found, wanted in zip(together, alone, strict=True):
        close(found, wanted)


def test_copied_cache_continues_like_the_original(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    with vitcop_llava.prune(model, budget()):
        cache = DynamicCache(config=model.config)
        model(input_ids=prompt(3, "image", 8), pixel_values=pictures(), past_key_values=cache)
        copied, more = copy.deepcopy(cache), prompt(3, seed=6)
        other = model(input_ids=prompt(5, seed=8), past_key_values=copied).logits
        one = model(input_ids=more, past_key_values=cache).logits
        fresh = model(input_ids=torch.cat([prompt(3, "image", 8), more], dim=1), pixel_values=pictures()).logits
        close(one, fresh[:, -4:])
        assert other.shape[1] == 6
        assert copied.get_seq_length() == cache.get_seq_length() + 2


def test_cache_serves_several_questions_by_cropping(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    ids, more = prompt(3, "image", 8), prompt(5, seed=6)
    with vitcop_llava.prune(model, budget()):
        cache = DynamicCache(config=model.config)
        model(input_ids=ids, pixel_values=pictures(), past_key_values=cache)
        once = model(input_ids=more, past_key_values=cache).logits
        cache.crop(-more.shape[1])
        assert cache.get_seq_length() == ids.shape[1]
        assert torch.equal(model(input_ids=more, past_key_values=cache).logits, once)
        cache.crop(-more.shape[1])
        cache.crop(-3)
        whole = model(input_ids=torch.cat([ids[:, :-3], more], dim=1), pixel_values=pictures()).logits
        close(model(input_ids=more, past_key_values=cache).logits, whole[:, -more.shape[1] :])
        cache.reset()
        assert cache.get_seq_length() == 0
        again = model(input_ids=ids, pixel_values=pictures(), past_key_values=cache).logits
        assert torch.equal(again, model(input_ids=ids, pixel_values=pictures()).logits)


@pytest.mark.parametrize(
    "later", [ViTCoP(retention_ratio=1), ViTCoP(retention_ratio=1 / 3, layers=(3, 5))], ids=["keep-all", "layers"]
)
def test_text_turn_under_another_method_equals_the_same(
    model: Any, prompt: Make, pictures: Make, budget: Any, later: ViTCoP
) -> None:
    ids, more, turns = prompt(3, "image", 8), prompt(5, seed=6), []
    for method in (budget(), later):
        with vitcop_llava.prune(model, budget()):
            cache = DynamicCache(config=model.config)
            model(input_ids=ids, pixel_values=pictures(), past_key_values=cache)
        with vitcop_llava.prune(model, method):
            turns.append(model(input_ids=more, past_key_values=cache).logits)
    assert torch.equal(*turns)


@pytest.mark.parametrize("rows", ["select", "repeat", "reorder"])
def test_cache_rows_move_with_their_positions(
    model: Any, prompt: Make, pictures: Make, pad: Any, budget: Any, rows: str
) -> None:
    batch = pad([prompt(2, "image", 8), prompt(12, seed=1)])
    with vitcop_llava.prune(model, budget()):
        cache = DynamicCache()
        model(**batch, pixel_values=pictures(1), past_key_values=cache)
        index = torch.tensor({"select": [1], "repeat": [0, 0, 1, 1], "reorder": [1, 0]}[rows])
        if rows == "repeat":
            cache.batch_repeat_interleave(2)
        else:
            getattr(cache, {"select": "batch_select_indices", "reorder": "reorder_cache"}[rows])(index)
        more = prompt(4, seed=3).expand(len(index), -1)
        chosen = {name: value[index] for name, value in batch.items()}
        mask = torch.cat([chosen["attention_mask"], torch.ones_like(more)], dim=1)
        turn = model(input_ids=more, attention_mask=mask, past_key_values=cache).logits
        ids = torch.cat([chosen["input_ids"], more], dim=1)
        images = {"select": None, "repeat": pictures(1).expand(2, -1, -1, -1), "reorder": pictures(1)}[rows]
        close(turn, model(input_ids=ids, attention_mask=mask, pixel_values=images).logits[:, -5:])
