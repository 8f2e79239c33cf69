"""LLaVA-NeXT-Video: the four properties, over clips and pictures, batches, padding and budgets."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache

import vitcop_llava
from vitcop_llava import DivPrune, EarlyViTCoP, VisionZip, VisPruner, ViTCoP

Inputs = Callable[..., dict[str, Any]]
KEEP_ALL = ViTCoP(retention_ratio=1)
clips = st.sampled_from(["clip1", "clip2", "clip3", "clip5", "clip8"])
pictures = st.sampled_from([(64, 64), (128, 128), (30, 120), (100, 77)])
rows = st.lists(st.one_of(st.integers(1, 6), clips, clips, pictures), min_size=1, max_size=4).filter(
    lambda row: sum(not isinstance(part, int) for part in row) <= 3
)
quick = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def stock(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same for the bare model, to which clips of several lengths are one."""
    found = inputs.get("pixel_values_videos")
    return {**inputs, "pixel_values_videos": torch.cat(found)[None]} if isinstance(found, list) else inputs


def check_rows(model: Any, inputs: Inputs, batch: list[list[Any]], side: str, method: Any, **how: Any) -> None:
    """Compares the logits of a batch, at its own tokens, with those of each row alone."""
    together = inputs(batch, side)
    with vitcop_llava.prune(model, method, **how):
        logits = model(**together).logits
        for number, row in enumerate(batch):
            close(logits[number][together["attention_mask"][number].bool()], model(**inputs([row])).logits[0])


@settings(quick, max_examples=60)
@given(
    batch=st.lists(rows.map(lambda row: [*row, 2]), min_size=1, max_size=3),
    side=st.sampled_from(["left", "right"]),
    share=st.sampled_from(["1/2", "1/3"]),
    temporal=st.sampled_from(
        [{}, {"change_share": 0.5}, {"cluster_frames": 3}, {"change_share": 1, "cluster_frames": 2}]
    ),
)
@example(batch=[["clip4", 2], ["clip8", 3], [7]], side="left", share="1/3", temporal={})
@example(batch=[["clip2", (64, 64), 2], [(128, 128), 2, "clip3", "clip2", 3]], side="right", share="1/2", temporal={})
def test_batch_equals_rows(
    video_model: Any, video_inputs: Inputs, budget: Any, batch: Any, side: str, share: str, temporal: Any
) -> None:
    check_rows(video_model, video_inputs, batch, side, budget(share, **temporal))


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_batch_equals_rows_for_every_language_model(
    build_video: Callable[..., Any], video_inputs: Inputs, budget: Any, kind: str, attention: str
) -> None:
    batch: list[list[Any]] = [[2, "clip4", 3], ["clip2", 3, (100, 77), 4], [9]]
    check_rows(build_video(kind, attention), video_inputs, batch, "left", budget("1/3"), keep_newline=True)


@pytest.mark.parametrize("method", [ViTCoP, VisionZip, DivPrune, VisPruner, EarlyViTCoP])
def test_tower_without_cls_has_the_four_properties(
    build_video: Callable[..., Any], video_inputs: Inputs, budget: Any, method: Any
) -> None:
    batch: list[list[Any]] = [[2, "clip4", 3], ["clip2", 3, (100, 77), 4], [9]]
    model = build_video("qwen2", tower="siglip")
    inputs = video_inputs(batch)
    plain = model(**stock(inputs)).logits
    with vitcop_llava.prune(model, KEEP_ALL):
        assert torch.equal(model(**inputs).logits, plain)
    pruned = budget("1/3") if method is ViTCoP else method(retention_ratio=1 / 3)
    check_rows(model, video_inputs, batch, "left", pruned)
    one = video_inputs(batch[1:2])
    with vitcop_llava.prune(model, pruned):
        made = model.generate(**one, max_new_tokens=3, output_logits=True, return_dict_in_generate=True)
        again = {**one, "input_ids": made.sequences, "attention_mask": torch.ones_like(made.sequences)}
        close(torch.cat(made.logits), model(**again).logits[0, -4:-1])
    assert torch.equal(model(**stock(inputs)).logits, plain)


VARIANTS: dict[str, dict[str, Any]] = {
    "attention": {"saliency": "attention"},
    "official": {"compat": "official", "layers": (2, 6)},
    "chained": {"counts": "chained"},
    "vision-hidden": {"vic_features": "vision_hidden"},
    "no-stage-one": {"share": "1/2", "stage_one": False},
    "no-stage-three": {"stage_three": False},
    "no-clusters": {"clustering": False},
    "change-no-clusters": {"clustering": False, "change_share": 0.7},
    "tokens": {"retained_tokens": 24},
    "tokens-change": {"retained_tokens": 24, "change_share": 1, "cluster_frames": 4},
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_batch_equals_rows_for_variants(
    video_model: Any, video_inputs: Inputs, budget: Any, variant: str, side: str
) -> None:
    batch: list[list[Any]] = [[2, "clip2", 3], ["clip4", 3, (100, 77), 4], [9], [(77, 100), 1, "clip3", 2]]
    check_rows(video_model, video_inputs, batch, side, budget(**VARIANTS[variant]))


@settings(quick, max_examples=40)
@given(batch=st.lists(rows.map(lambda row: [*row, 2]), min_size=1, max_size=3), side=st.sampled_from(["left", "right"]))
def test_keep_all_equals_unpatched(video_model: Any, video_inputs: Inputs, batch: Any, side: str) -> None:
    inputs = video_inputs(batch, side)
    with vitcop_llava.prune(video_model, KEEP_ALL) as pruner:
        kept = video_model(**inputs, output_hidden_states=True)
        images = [row.images for row in pruner.report.rows]
    plain = video_model(**stock(inputs), output_hidden_states=True)
    assert torch.equal(kept.logits, plain.logits)
    assert all(torch.equal(a, b) for a, b in zip(kept.hidden_states, plain.hidden_states, strict=True))
    if any(images):
        assert images == [sum(not isinstance(part, int) for part in row) for row in batch]


@pytest.mark.parametrize("mode", ["average", "max", "conv"])
def test_every_pooling_is_pruned_and_left(
    build_video: Callable[..., Any], video_inputs: Inputs, budget: Any, mode: str
) -> None:
    model, inputs = build_video(mode=mode), video_inputs([[2, "clip4", 3], [1, "clip4", 4]])
    with vitcop_llava.prune(model, KEEP_ALL):
        kept = model(**inputs).logits
    assert torch.equal(kept, model(**inputs).logits)
    check_rows(model, video_inputs, [[2, "clip4", 3], [1, "clip2", 4]], "left", budget("1/3"))


@settings(quick, max_examples=40)
@given(row=rows.map(lambda row: [*row, 2]), share=st.sampled_from(["1/2", "1/3"]), changes=st.booleans())
@example(row=["clip3", 1, (100, 77), "clip2", 3], share="1/3", changes=True)
def test_cached_decoding_equals_recomputing(
    video_model: Any, video_inputs: Inputs, budget: Any, row: Any, share: str, changes: bool
) -> None:
    inputs, how = video_inputs([row]), {"max_new_tokens": 3, "do_sample": False}
    extra = {"change_share": 1, "cluster_frames": 3} if changes else {}
    with vitcop_llava.prune(video_model, budget(share, **extra)):
        output = video_model.generate(**inputs, **how, output_logits=True, return_dict_in_generate=True)
        again = {**inputs, "input_ids": output.sequences, "attention_mask": torch.ones_like(output.sequences)}
        close(torch.cat(output.logits), video_model(**again).logits[0, -4:-1])


def snapshot(model: Any) -> dict[str, Any]:
    return {name: (sorted(vars(module)), dict(module._forward_hooks)) for name, module in model.named_modules()}


@pytest.mark.parametrize("method", ["all", "third"])
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_block_leaves_nothing(video_model: Any, video_inputs: Inputs, budget: Any, method: str, fails: bool) -> None:
    inputs = video_inputs([[2, "clip4", (64, 64), 3]])
    before, wanted = snapshot(video_model), video_model(**inputs).logits

    def run() -> None:
        with vitcop_llava.prune(video_model, KEEP_ALL if method == "all" else budget("1/3")):
            assert "get_video_features" in vars(video_model.model)
            video_model(**inputs)
            if fails:
                video_model(**{**inputs, "pixel_values_videos": [torch.zeros(3, 64, 64)]})

    if fails:
        with pytest.raises(ValueError, match="pixel_values_videos must be of shape"):
            run()
    else:
        run()
    assert snapshot(video_model) == before
    assert torch.equal(video_model(**inputs).logits, wanted)


@pytest.mark.parametrize("alike", [True, False], ids=["tensor", "list"])
def test_beam_search_of_batch_equals_rows(video_model: Any, video_inputs: Inputs, budget: Any, alike: bool) -> None:
    if not alike and "mm_encoder_outputs" not in inspect.signature(video_model.forward).parameters:
        pytest.skip("this transformers encodes after it has made the beams, and repeats tensors alone for them")
    batch: list[list[Any]] = [[2, "clip4", 3], ["clip4" if alike else "clip2", 1, (64, 64), 4]]
    how = {
        "max_new_tokens": 3,
        "do_sample": False,
        "num_beams": 3,
        "output_scores": True,
        "return_dict_in_generate": True,
    }
    with vitcop_llava.prune(video_model, budget("1/3")):
        together = video_model.generate(**video_inputs(batch), **how)
        for number, row in enumerate(batch):
            alone = video_model.generate(**video_inputs([row]), **how)
            close(together.sequences_scores[number], alone.sequences_scores[0])
            assert torch.equal(together.sequences[number, -3:], alone.sequences[0, -3:])


def test_later_turns_equal_one_prompt(video_model: Any, video_inputs: Inputs, budget: Any) -> None:
    """A second turn with a clip of its own keeps its own budget; a third in text is as if it were one prompt."""
    first, words = video_inputs([[2, "clip4", 4]]), video_inputs([[5]])["input_ids"][:, 1:]
    with vitcop_llava.prune(video_model, budget("1/3")) as pruner:
        cache, ids = DynamicCache(config=video_model.config), first["input_ids"]
        video_model(**first, past_key_values=cache)
        turn = video_model(input_ids=words, past_key_values=cache).logits
        whole = torch.cat([ids, words], dim=1)
        again = {**first, "input_ids": whole, "attention_mask": torch.ones_like(whole)}
        close(turn, video_model(**again).logits[:, -words.shape[1] :])
        second = video_inputs([["clip2", 3]])
        del second["attention_mask"]
        video_model(**second, past_key_values=cache)
        assert [row.plan for row in pruner.report.rows] == [budget("1/3").plan(8, (16, 16))]
        assert cache.get_seq_length() == whole.shape[1] + second["input_ids"].shape[1]


@pytest.mark.parametrize("hidden", ["picture", "clip"])
def test_picture_or_clip_that_the_mask_hides_is_absent(
    video_model: Any, video_inputs: Inputs, budget: Any, hidden: str
) -> None:
    inputs = video_inputs([[2, (100, 77), 3, "clip4", 4]])
    ids, pixels = inputs["input_ids"], ["pixel_values_videos"]
    shown = ids != video_model.config.image_token_index
    if hidden == "clip":
        shown, pixels = ids != video_model.config.video_token_index, ["pixel_values", "image_sizes"]
    rest = {"input_ids": ids[:, shown[0]], **{name: inputs[name] for name in pixels}}
    given = {"max_new_tokens": 2, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with vitcop_llava.prune(video_model, budget("1/3")) as pruner:
        found = video_model.generate(**inputs | {"attention_mask": shown.long()}, **given)
        assert pruner.report.rows[0].images == 1
        wanted = video_model.generate(**rest, attention_mask=torch.ones_like(rest["input_ids"]), **given)
    close(torch.stack(found.logits), torch.stack(wanted.logits))


def test_gradients_reach_the_tower(video_model: Any, video_inputs: Inputs, budget: Any) -> None:
    inputs = video_inputs([[2, "clip4", 4], ["clip2", (64, 64), 3]])
    with torch.enable_grad(), vitcop_llava.prune(video_model, budget("1/3", change_share=0.5, cluster_frames=2)):
        video_model(**inputs).logits[:, -1].square().sum().backward()
    for name, parameter in video_model.named_parameters():
        if name.endswith(("patch_embedding.weight", "linear_1.weight", "embed_tokens.weight")):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all()
            assert parameter.grad.abs().sum() > 0, name
    video_model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keeps_what_the_plan_says(
    video_model: Any, video_inputs: Inputs, budget: Any, dtype: torch.dtype
) -> None:
    inputs = video_inputs([[2, "clip4", (64, 64), 4], ["clip2", 3]])
    pixels = {name: value for name, value in inputs.items() if name.startswith("pixel")}
    inputs["pixel_values"] = pixels["pixel_values"].to(dtype)
    inputs["pixel_values_videos"] = [clip.to(dtype) for clip in pixels["pixel_values_videos"]]
    model = copy.deepcopy(video_model).to(dtype)
    with vitcop_llava.prune(model, budget("1/3", change_share=0.5, cluster_frames=2)) as pruner:
        assert model(**inputs).logits.isfinite().all()
        for number, row in enumerate(pruner.report.rows):
            assert row.plan is not None
            assert len(pruner.survivors(number).stages[0].patches) == row.plan.entry_tokens


def test_prefix_of_a_picture_takes_questions_and_refuses_clips(
    video_model: Any, video_inputs: Inputs, budget: Any
) -> None:
    first, question = video_inputs([[2, (64, 64)]]), video_inputs([[5]])["input_ids"][:, 1:]
    with vitcop_llava.prune(video_model, budget("1/3")):
        prefix = vitcop_llava.encode_image(video_model, **first)
        whole = torch.cat([first["input_ids"], question], dim=1)
        again = {**first, "input_ids": whole, "attention_mask": torch.ones_like(whole)}
        found = video_model(input_ids=question, past_key_values=prefix.cache()).logits
        close(found, video_model(**again).logits[:, -question.shape[1] :])
        with pytest.raises(ValueError, match="placeholder"):
            video_model(input_ids=video_inputs([["clip2", 3]])["input_ids"], past_key_values=prefix.cache())
        mixed = video_inputs([[2, "clip2", (64, 64)]])
        del mixed["pixel_values_videos"]
        with pytest.raises(ValueError, match="pixel_values_videos must be given with the 32 video placeholders"):
            vitcop_llava.encode_image(video_model, **mixed)
