"""One pruned image for many questions: answers are those of asking each from scratch."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import vitcop_llava
from vitcop_llava import ImagePrefix
from vitcop_llava.compat import CACHE

Make = Callable[..., Tensor]
Ids = list[list[int]]
HOW: dict[str, Any] = {
    "max_new_tokens": 5,
    "do_sample": False,
    "output_logits": True,
    "return_dict_in_generate": True,
}


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def from_scratch(model: Any, ids: Tensor, question: list[int], images: Tensor, **how: Any) -> Any:
    whole = torch.cat([ids, torch.tensor([question])], dim=1)
    given = {"input_ids": whole, "attention_mask": torch.ones_like(whole), "pixel_values": images}
    return model.generate(**given, **{**HOW, **how})


@pytest.fixture
def questions() -> Ids:
    return [[5, 6, 7, 8], [9], [10, 11, 12, 13, 14, 15, 16], [17, 18]]


@pytest.mark.parametrize("share", ["1/3", "1/9"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_answers_equal_asking_each_from_scratch(
    build: Callable[..., Any], prompt: Make, pictures: Make, budget: Any, questions: Ids, kind: str, share: str
) -> None:
    model, ids = build(kind), prompt(3, "image")
    with vitcop_llava.prune(model, budget(share)):
        prefix = vitcop_llava.encode_image(model, ids, pictures())
        inputs = prefix.inputs(questions)
        output = model.generate(**inputs, **HOW)
        for row, question in enumerate(questions):
            alone = from_scratch(model, ids, question, pictures())
            close(torch.stack(output.logits, 1)[row], torch.cat(alone.logits))
            assert torch.equal(output.sequences[row, -5:], alone.sequences[0, -5:])
    assert output.sequences.shape[1] == inputs["input_ids"].shape[1] + 5


@pytest.mark.parametrize(
    "parts", [("image",), ("image", 4, "image"), (5, "image", 3), (2, "image", "image", 1)], ids=str
)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_prefix_of_several_images_and_texts_answers_alike(
    build: Callable[..., Any], prompt: Make, pictures: Make, budget: Any, questions: Ids, attention: str, parts: Any
) -> None:
    model, ids, images = build(attention=attention), prompt(*parts), pictures(parts.count("image"))
    with vitcop_llava.prune(model, budget()):
        output = model.generate(**vitcop_llava.encode_image(model, ids, images).inputs(questions), **HOW)
        for row, question in enumerate(questions):
            close(torch.stack(output.logits, 1)[row], torch.cat(from_scratch(model, ids, question, images).logits))


@pytest.mark.parametrize(
    "settings",
    [
        {"compat": "official", "deep_positions": "kept"},
        {"knorm": "head_mean"},
        {"stage_three": False},
        {"share": "1/3", "stage_one": False},
        {"share": "1"},
    ],
    ids=str,
)
def test_answers_of_variants_equal_asking_from_scratch(
    model: Any, prompt: Make, pictures: Make, budget: Any, questions: Ids, settings: dict[str, Any]
) -> None:
    ids = prompt(3, "image")
    with vitcop_llava.prune(model, budget(**settings)):
        output = model.generate(**vitcop_llava.encode_image(model, ids, pictures()).inputs(questions), **HOW)
        for row, question in enumerate(questions):
            close(torch.stack(output.logits, 1)[row], torch.cat(from_scratch(model, ids, question, pictures()).logits))


def test_nothing_of_the_image_is_computed_again(
    model: Any, prompt: Make, pictures: Make, budget: Any, questions: Ids
) -> None:
    lengths: list[int] = []
    with vitcop_llava.prune(model, budget()):
        prefix = vitcop_llava.encode_image(model, prompt(3, "image"), pictures())

        def refuse(*_: Any) -> None:
            raise AssertionError("the image is encoded again")

        def note(_: Any, args: Any, kwargs: Any) -> None:
            lengths.append(kwargs["inputs_embeds"].shape[1])

        base = model.model
        handles = [part.register_forward_pre_hook(refuse) for part in (base.vision_tower, base.multi_modal_projector)]
        handles.append(base.language_model.register_forward_pre_hook(note, with_kwargs=True))
        try:
            model.generate(**prefix.inputs(questions), max_new_tokens=3, do_sample=False)
        finally:
            for handle in handles:
                handle.remove()
    assert lengths == [7, 1, 1]


def test_generate_takes_a_whole_prompt_with_a_cache(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    ids, question = prompt(3, "image"), [5, 6, 7]
    with vitcop_llava.prune(model, budget()):
        prefix = vitcop_llava.encode_image(model, ids, pictures())
        whole = torch.cat([ids, torch.tensor([question])], dim=1)
        mask = torch.ones_like(whole)
        output = model.generate(input_ids=whole, attention_mask=mask, past_key_values=prefix.cache(), **HOW)
        close(torch.cat(output.logits), torch.cat(from_scratch(model, ids, question, pictures()).logits))
        logits = model(input_ids=torch.tensor([question]), past_key_values=prefix.cache()).logits
        close(logits, model(input_ids=whole, pixel_values=pictures()).logits[:, -3:])


@pytest.mark.parametrize("beams", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}], ids=str)
def test_beam_search_equals_from_scratch(
    model: Any, prompt: Make, pictures: Make, budget: Any, questions: Ids, beams: dict[str, int]
) -> None:
    ids, how = prompt(3, "image"), {**HOW, **beams, "output_scores": True}
    count = beams.get("num_return_sequences", 1)
    with vitcop_llava.prune(model, budget()):
        output = model.generate(**vitcop_llava.encode_image(model, ids, pictures()).inputs(questions), **how)
        for row, question in enumerate(questions):
            alone = from_scratch(model, ids, question, pictures(), **how)
            rows = slice(row * count, (row + 1) * count)
            close(output.sequences_scores[rows], alone.sequences_scores)
            assert torch.equal(output.sequences[rows, -5:], alone.sequences[:, -5:])


@pytest.mark.parametrize("copies", [1, 3])
def test_sampling_equals_from_scratch(
    model: Any, prompt: Make, pictures: Make, pad: Any, budget: Any, questions: Ids, copies: int
) -> None:
    ids, how = prompt(3, "image"), {"do_sample": True, "max_new_tokens": 6, "num_return_sequences": copies}
    with vitcop_llava.prune(model, budget()):
        prefix = vitcop_llava.encode_image(model, ids, pictures())
        torch.manual_seed(3)
        sampled = model.generate(**prefix.inputs(questions), **how)
        batch = pad([torch.cat([ids, torch.tensor([question])], dim=1) for question in questions])
        torch.manual_seed(3)
        alone = model.generate(**batch, pixel_values=pictures().expand(len(questions), -1, -1, -1), **how)
    assert torch.equal(sampled[:, -6:], alone[:, -6:])


def test_prompt_that_is_given_twice_is_refused(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    with vitcop_llava.prune(model, budget()):
        prefix = vitcop_llava.encode_image(model, prompt(30, "image"), pictures())
        with pytest.raises(ValueError, match=r"input_ids must be what follows the prefix .* not with an assistant"):
            model.generate(**prefix.inputs([[5, 6, 7]]), prompt_lookup_num_tokens=3, **HOW)
        given = prefix.inputs([[5, 6, 7]])
        del given["attention_mask"]
        with pytest.raises(ValueError, match="input_ids must be what follows the prefix"):
            model(**given)


def test_second_turn_equals_recomputing(model: Any, prompt: Make, pictures: Make, budget: Any, questions: Ids) -> None:
    ids, more = prompt(3, "image"), torch.tensor([[20, 21, 22]])
    with vitcop_llava.prune(model, budget()):
        inputs = vitcop_llava.encode_image(model, ids, pictures()).inputs(questions)
        first = model.generate(**inputs, **HOW)
        asked = torch.cat([first.sequences, more.expand(len(questions), -1)], dim=1)
        later = asked.shape[1] - inputs["attention_mask"].shape[1]
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, later), value=1)
        second = model.generate(input_ids=asked, attention_mask=mask, past_key_values=first.past_key_values, **HOW)
        for row, question in enumerate(questions):
            so_far = [*question, *first.sequences[row, -5:].tolist(), *more[0].tolist()]
            close(torch.stack(second.logits, 1)[row], torch.cat(from_scratch(model, ids, so_far, pictures()).logits))


def test_another_image_may_join_later(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    ids, turn = prompt(3, "image"), prompt("image", 4, seed=2)
    with vitcop_llava.prune(model, budget()):
        prefix = vitcop_llava.encode_image(model, ids, pictures())
        given = {"input_ids": turn.expand(2, -1), "pixel_values": pictures(2, seed=1)}
        logits = model(**given, past_key_values=prefix.cache()).logits
        for row in range(2):
            cache = prefix.cache()
            own = pictures(2, seed=1)[row : row + 1]
            close(logits[row], model(input_ids=turn, pixel_values=own, past_key_values=cache).logits[0])


@pytest.mark.parametrize("how", ["repeated", "copied", "reordered"])
def test_fresh_cache_can_be_repeated_and_copied(
    model: Any, prompt: Make, pictures: Make, budget: Any, how: str
) -> None:
    more = torch.tensor([[5, 6], [7, 8]])
    with vitcop_llava.prune(model, budget()):
        prefix = vitcop_llava.encode_image(model, prompt(3, "image"), pictures())
        wanted = model(input_ids=more, past_key_values=prefix.cache()).logits
        cache: Any = copy.deepcopy(prefix.cache()) if how == "copied" else prefix.cache()
        if how == "repeated":
            cache.batch_repeat_interleave(2)
        elif how == "reordered":
            cache.reorder_cache(torch.tensor([0]))
        assert torch.equal(model(input_ids=more, past_key_values=cache).logits, wanted)


def test_many_uses_leave_the_prefix_as_it_was(
    model: Any, prompt: Make, pictures: Make, budget: Any, questions: Ids
) -> None:
    with vitcop_llava.prune(model, budget()):
        prefix = vitcop_llava.encode_image(model, prompt(3, "image"), pictures())
        cache: Any = prefix.cache()
        held = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
        first = model.generate(**prefix.inputs(questions), **HOW)
        for _ in range(3):
            model.generate(**prefix.inputs(questions[:2]), **{**HOW, "num_beams": 2})
        used = prefix.inputs(questions)
        model.generate(**used, **HOW)
        used[CACHE].crop(-2)
        used[CACHE].reset()
        prefix.cache().reset()
        again = model.generate(**prefix.inputs(questions), **HOW)
    assert all(torch.equal(*pair) for pair in zip(first.logits, again.logits, strict=True))
    cache = prefix.cache()
    for layer, (keys, values) in zip(cache.layers, held, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)
        assert layer.get_seq_length() == prefix.input_ids.shape[1]


@pytest.mark.parametrize("tokens", [1, 3])
def test_text_at_the_end_can_be_rolled_back(model: Any, prompt: Make, pictures: Make, budget: Any, tokens: int) -> None:
    ids = prompt(3, "image", 3)
    with vitcop_llava.prune(model, budget()):
        prefix = vitcop_llava.encode_image(model, ids, pictures())
        cache = prefix.cache()
        cache.crop(-tokens)
        more = torch.tensor([[5, 6], [7, 8]])
        logits = model(input_ids=more, past_key_values=cache).logits
        whole = torch.cat([ids[:, : ids.shape[1] - tokens].expand(2, -1), more], dim=1)
        both = pictures().expand(2, -1, -1, -1)
        close(logits, model(input_ids=whole, pixel_values=both).logits[:, -2:])
        with pytest.raises(ValueError, match="cannot be cut in part"):
            prefix.cache().crop(-4)


def test_threads_share_one_prefix(model: Any, prompt: Make, pictures: Make, budget: Any, questions: Ids) -> None:
    def answer(prefix: ImagePrefix, asked: Ids) -> Tensor:
        with torch.no_grad():
            return torch.cat(model.generate(**prefix.inputs(asked), **HOW).logits)

    def encode(seed: int) -> ImagePrefix:
        return vitcop_llava.encode_image(model, prompt(3, *["image"] * seed), pictures(seed))

    asked = [questions[:1], questions, questions[1:3], questions[2:]] * 2
    with vitcop_llava.prune(model, budget()), ThreadPoolExecutor(4) as pool:
        prefixes = list(pool.map(encode, [1, 2, 1, 2]))
        assert [prefix.report.rows[0].images for prefix in prefixes] == [1, 2, 1, 2]
        alone = [answer(prefixes[0], ids) for ids in asked]
        together = list(pool.map(answer, [prefixes[0]] * len(asked), asked))
    for found, wanted in zip(together, alone, strict=True):
        close(found, wanted)


def test_prefix_outlives_the_block_and_needs_a_pruned_model(
    model: Any, prompt: Make, pictures: Make, budget: Any, questions: Ids
) -> None:
    prefix = vitcop_llava.encode_image(model, prompt(3, "image"), pictures(), method=budget())
    with pytest.raises(ValueError, match="got a cache that vitcop pruned, and a model that is not"):
        model.generate(**prefix.inputs(questions), **HOW)
    outputs = []
    for method in (budget(), budget("1/3"), budget("1")):  # any method: it is the image that was pruned, long ago
        with vitcop_llava.prune(model, method):
            outputs.append(model.generate(**prefix.inputs(questions), **HOW).sequences)
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


def test_prefix_of_everything_serves_the_bare_model(
    model: Any, prompt: Make, pictures: Make, budget: Any, questions: Ids
) -> None:
    ids = prompt(3, "image")
    prefix = vitcop_llava.encode_image(model, ids, pictures(), method=budget("1"))
    output = model.generate(**prefix.inputs(questions), **HOW)
    close(torch.stack(output.logits, 1)[0], torch.cat(from_scratch(model, ids, questions[0], pictures()).logits))
    assert prefix.report.note is not None


def test_encoding_with_a_method_leaves_the_model_bare(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    prefix = vitcop_llava.encode_image(model, prompt(3, "image"), pictures(), method=budget())
    assert not any(module._forward_pre_hooks for module in model.model.language_model.layers)
    with vitcop_llava.prune(model, budget()) as pruner:
        model(input_ids=prompt(3, "image"), pixel_values=pictures())
        assert str(prefix.report) == str(pruner.report)
    assert repr(prefix).startswith("ImagePrefix(148 tokens, 1 image, ViTCoP(")


def test_whole_prompts_equal_their_questions(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    ids, placeholder = prompt(3, "image", 2), int(prompt("image")[0, 1])
    prefix = vitcop_llava.encode_image(model, ids, pictures(), method=budget())
    row, question = ids[0].tolist(), [5, 6, 7]
    as_tokenized = [*row[:4], placeholder, *row[-2:], *question]
    forms: list[Any] = [question, torch.tensor(question), torch.tensor([question]), row + question, as_tokenized]
    for form in forms:
        assert torch.equal(prefix.inputs([form])["input_ids"][0], torch.tensor(row + question))
    inputs = prefix.inputs([*forms, [8] * 5], pad_token_id=2)
    assert inputs["input_ids"][0].tolist() == [*row, 2, 2, *question]
    assert inputs["attention_mask"].sum(1).tolist() == [150 + 3] * 5 + [150 + 5]
    assert torch.equal(
        prefix.inputs(torch.tensor([question] * 2))["input_ids"][1], inputs["input_ids"][3][[*range(150), -3, -2, -1]]
    )
