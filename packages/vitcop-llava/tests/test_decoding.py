"""Decoding with the pruned cache gives what computing prompt and answer from scratch gives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TextStreamer
from transformers.generation.streamers import BaseStreamer

import vitcop_llava

Make = Callable[..., Tensor]
VARIANTS: dict[str, dict[str, Any]] = {
    "keys-hidden": {"vic_features": "vision_hidden"},
    "floor": {"centers_round": "floor"},
    "head-mean": {"knorm": "head_mean"},
    "rounded": {"quota": "rounded"},
    "anchor": {"merge": "anchor_plus_mean"},
    "chained": {"counts": "chained"},
    "official-but-positions": {"compat": "official", "deep_positions": "kept"},
    "no-stage-one": {"share": "1/3", "stage_one": False},
    "no-stage-three": {"stage_three": False},
    "no-clusters": {"clustering": False},
    "other-layers": {"layers": (3, 5), "share": "2/9"},
    "ratios": {"ratios": (0.5, 0.3, 0.1)},
}
HOW: dict[str, Any] = {
    "max_new_tokens": 5,
    "do_sample": False,
    "output_logits": True,
    "return_dict_in_generate": True,
}


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def check_steps(model: Any, ids: Tensor, images: Tensor, **how: Any) -> None:
    """Compares the logits of every decoding step with those of one forward over prompt and answer."""
    output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=images, **{**HOW, **how})
    new = output.sequences.shape[1] - ids.shape[1]
    recomputed = model(input_ids=output.sequences, pixel_values=images, use_cache=False).logits
    close(torch.stack(output.logits, 1), recomputed[:, -new - 1 : -1])


@pytest.mark.parametrize("share", ["1/3", "2/9", "1/9", "1/18"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_decoding_equals_recomputing(
    build: Callable[..., Any], prompt: Make, pictures: Make, budget: Any, kind: str, attention: str, share: str
) -> None:
    model = build(kind, attention, kv_heads=4 if kind == "mistral" else 2)
    with vitcop_llava.prune(model, budget(share)):
        check_steps(model, prompt(3, "image", 4, "image", 8), pictures(2))


@pytest.mark.parametrize("variant", VARIANTS)
def test_decoding_equals_recomputing_for_variants(
    model: Any, prompt: Make, pictures: Make, budget: Any, variant: str
) -> None:
    with vitcop_llava.prune(model, budget(**VARIANTS[variant])):
        check_steps(model, prompt(3, "image", 8), pictures())


def test_decoding_equals_recomputing_after_an_image_at_the_end(
    model: Any, prompt: Make, pictures: Make, budget: Any
) -> None:
    with vitcop_llava.prune(model, budget()):
        check_steps(model, prompt(6, "image"), pictures())


def test_decoding_without_a_cache_equals_decoding_with_one(
    model: Any, prompt: Make, pictures: Make, budget: Any
) -> None:
    ids = prompt(3, "image", 8)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures(), **HOW}
    with vitcop_llava.prune(model, budget()):
        with_cache, without = (model.generate(**given, use_cache=use_cache) for use_cache in (True, False))
    close(torch.cat(with_cache.logits), torch.cat(without.logits))
    assert without.past_key_values is None


def test_attention_saliency_keeps_its_choice_while_decoding(
    model: Any, prompt: Make, pictures: Make, budget: Any
) -> None:
    ids = prompt(3, "image", 8)
    with vitcop_llava.prune(model, budget(saliency="attention")) as pruner:
        first = model(input_ids=ids, pixel_values=pictures()).logits[:, -1]
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pictures(), **HOW)
        close(output.logits[0], first)
        without_cache = model(input_ids=ids, pixel_values=pictures(), use_cache=False).logits[:, -1]
        close(without_cache, first)
        assert pruner.report.pruned


def test_beam_search_scores_equal_recomputed_ones(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    ids = prompt(3, "image", 8)
    with vitcop_llava.prune(model, budget()):
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures()}
        how = {**HOW, "output_scores": True, "num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.0}
        output = model.generate(**given, **how)
        images = pictures().repeat_interleave(3, dim=0)
        scores = model(input_ids=output.sequences, pixel_values=images).logits[:, -6:-1].log_softmax(-1)
    chosen = scores.gather(2, output.sequences[:, -5:, None])[..., 0].sum(1)
    close(output.sequences_scores, chosen)


@pytest.mark.parametrize(
    "how", [{"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 2}, {"assistant": True}], ids=["lookup", "model"]
)
def test_assisted_decoding_equals_plain(
    build: Callable[..., Any], prompt: Make, pictures: Make, budget: Any, how: dict[str, Any]
) -> None:
    model, ids = build(), prompt(30, "image", 8)
    how = {"assistant_model": build(seed=1)} if how.get("assistant") else how
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures()}
    with vitcop_llava.prune(model, budget("1/3")):
        assisted = model.generate(**given, **{**HOW, **how, "max_new_tokens": 12})
        plain = model.generate(**given, **{**HOW, "max_new_tokens": 12})
    close(torch.cat(assisted.logits), torch.cat(plain.logits))
    assert torch.equal(assisted.sequences, plain.sequences)


class _Recorder(BaseStreamer):
    def __init__(self) -> None:
        self.pieces: list[Tensor] = []

    def put(self, value: Tensor) -> None:
        self.pieces.append(value.flatten())

    def end(self) -> None:
        pass


class _Words:
    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(f"w{number} " for number in ids)


def test_streaming_equals_returning(
    model: Any, prompt: Make, pictures: Make, budget: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    ids, recorder = prompt(3, "image", 8), _Recorder()
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures()}
    with vitcop_llava.prune(model, budget()):
        plain = model.generate(**given, max_new_tokens=6, do_sample=False)
        model.generate(**given, max_new_tokens=6, do_sample=False, streamer=recorder)
        shown: Any = TextStreamer(_Words(), skip_prompt=True)  # type: ignore[arg-type]
        model.generate(**given, max_new_tokens=6, do_sample=False, streamer=shown)
    assert torch.equal(torch.cat(recorder.pieces)[None], plain)
    assert capsys.readouterr().out.split() == [f"w{number}" for number in plain[0, -6:].tolist()]


def test_generate_obeys_lengths_of_the_callers_prompt(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    ids = prompt(3, "image", 8)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures()}
    with vitcop_llava.prune(model, budget()):
        output = model.generate(**given, do_sample=False, max_length=ids.shape[1] + 3)
    assert output.shape[1] == ids.shape[1] + 3
    assert torch.equal(output[:, :-3], ids)
