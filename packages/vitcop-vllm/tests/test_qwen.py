"""Qwen2.5-VL in vLLM gives the tokens that it gives pruned in transformers: what stays keeps its place on the image."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest_vllm import ENGINE, HOW, Job, answers, expected, pictures
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from vitcop_vllm.qwen2_5_vl import PrunedQwen25VL, check_engine

PLACE = "<|vision_start|><|image_pad|><|vision_end|>"
ONE = f"USER: {PLACE}\nwhat color is the circle ? ASSISTANT:"
TWO = f"USER: {PLACE}\n {PLACE}\nwhat color is the circle ? ASSISTANT:"
TEXT = "USER: what color ? ASSISTANT:"
SHARE: dict[str, Any] = {"retention_ratio": 1 / 4}
SETTINGS: dict[str, dict[str, Any]] = {
    "early": {"method": "earlyvitcop", **SHARE},
    "layer0": {"method": "earlyvitcop(ranking='layer0')", **SHARE},
    "zip": {"method": "visionzip", **SHARE},
    "diverse": {"method": "divprune", **SHARE},
}
WHOLE: dict[str, Any] = {"hf_overrides": {"vitcop": {"method": "earlyvitcop", "retention_ratio": 1}}}


@pytest.fixture(scope="module")
def jobs() -> list[Job]:
    # The last has more columns than one digit of theirs counts.
    images = pictures([(336, 336), (224, 84), (84, 280), (308, 196), (28 * 130, 28)], seed=5)
    return [*((ONE, [image]) for image in images), (TWO, images[1:3]), (TEXT, []), (TWO, images[2:4])]


@pytest.fixture(scope="module")
def engine(qwen: Path) -> Any:
    """An engine that prunes nothing where a request does not ask for it."""
    from vllm import LLM

    return LLM(model=str(qwen), **ENGINE | {"limit_mm_per_prompt": {"image": 4, "video": 1}}, **WHOLE)


def wanted(qwen: Path, jobs: list[Job], settings: dict[str, Any] | None) -> list[list[int]]:
    return expected(qwen, Qwen2_5_VLForConditionalGeneration, jobs, settings)


def test_without_settings_nothing_changes(qwen: Path, engine: Any, jobs: list[Job]) -> None:
    assert answers(engine, jobs) == wanted(qwen, jobs, None)


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_a_request(qwen: Path, engine: Any, jobs: list[Job], name: str) -> None:
    settings = SETTINGS[name]
    tokens = wanted(qwen, jobs, settings)
    assert tokens != wanted(qwen, jobs, None)
    assert answers(engine, jobs, settings) == tokens
    assert answers(engine, jobs, settings) == tokens  # from the prefix cache
    assert [answers(engine, [job], settings)[0] for job in jobs] == tokens


def test_methods_and_whole_images_in_one_batch_are_never_mixed(qwen: Path, engine: Any, jobs: list[Job]) -> None:
    from vllm import SamplingParams

    mixed = (SETTINGS["early"], None, SETTINGS["zip"])
    requests = [
        {"prompt": prompt, "multi_modal_data": {"image": images}}
        | ({} if settings is None else {"mm_processor_kwargs": {"vitcop": settings}})
        for prompt, images in jobs[:5]
        for settings in mixed
    ]
    found = engine.generate(requests, SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
    each = [wanted(qwen, jobs[:5], settings) for settings in mixed]
    assert [list(one.outputs[0].token_ids) for one in found] == [
        row for rows in zip(*each, strict=True) for row in rows
    ]


def test_clips_beside_images_are_as_ever(qwen: Path, engine: Any) -> None:
    """Both have positions of three axes, and the text that follows counts on from them."""
    from vllm import SamplingParams

    (image,), frames = pictures([(308, 196)], seed=6), np.stack([np.asarray(each) for each in pictures([(84, 56)] * 4)])
    clip = PLACE.replace("image", "video")
    prompt = f"USER: {clip}\n {PLACE}\nwhat color is the circle ? ASSISTANT:"
    metadata: dict[str, Any] = {"fps": 2.0, "duration": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3]}
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(qwen, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    inputs = AutoProcessor.from_pretrained(qwen)(
        text=prompt,
        images=[image],
        videos=[frames],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )
    tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    shown = (frames, {**metadata, "video_backend": "opencv", "do_sample_frames": False})
    request = {"prompt": prompt, "multi_modal_data": {"image": [image], "video": [shown]}}
    (found,) = engine.generate([request], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
    assert list(found.outputs[0].token_ids) == tokens.tolist()


def test_embeddings_are_taken_whole(qwen: Path) -> None:
    from vllm import LLM, SamplingParams

    pair = pictures([(308, 196), (224, 84)], seed=7)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(qwen, dtype=torch.float32).eval()
    processor, settings = AutoProcessor.from_pretrained(qwen), SETTINGS["early"]
    made = processor.image_processor([pair[0]], return_tensors="pt")
    with torch.no_grad():
        (features,) = model.model.get_image_features(**made).pooler_output
    given = {"image_embeds": features, "image_grid_thw": made["image_grid_thw"]}
    engine = LLM(model=str(qwen), enable_mm_embeds=True, hf_overrides={"vitcop": settings}, **ENGINE)
    how = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    requests = [{"prompt": ONE, "multi_modal_data": {"image": image}} for image in (given, pair[1])]
    found = engine.generate(requests, how)
    whole, pruned = wanted(qwen, [(ONE, pair[:1])], None), wanted(qwen, [(ONE, pair[1:])], settings)
    assert [list(each.outputs[0].token_ids) for each in found] == whole + pruned


REFUSED: list[tuple[Any, str]] = [
    ({"method": "vitcop", "retention_ratio": 1 / 4}, "method must cut before the language model alone"),
    ({"method": "visionzip(vision_saliency='cls')", **SHARE}, "model must have a vision tower with a CLS token"),
    ({"method": "visionzip", "retention_ratio": 2}, "retention_ratio must be"),
    ({"method": "earlyvitcop", "retained_tokens": 100000}, "retained_tokens must be at most"),
    ({"method": 5}, "vitcop must name a method as text, got 5"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_settings_that_do_not_fit_are_refused_and_the_engine_lives_on(
    qwen: Path, engine: Any, jobs: list[Job], settings: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        answers(engine, jobs[:1], settings)
    assert answers(engine, jobs[:1], SETTINGS["zip"]) == wanted(qwen, jobs[:1], SETTINGS["zip"])


@pytest.mark.parametrize("how", HOW)
def test_settings_of_the_engine(qwen: Path, jobs: list[Job], how: str) -> None:
    from vllm import LLM

    settings = SETTINGS["layer0"]
    engine = LLM(model=str(qwen), hf_overrides={"vitcop": settings}, **{**ENGINE, **HOW[how]})
    assert answers(engine, jobs) == wanted(qwen, jobs, settings)


def test_an_engine_without_settings_is_vllms_own(qwen: Path, jobs: list[Job]) -> None:
    from vllm import LLM

    engine = LLM(model=str(qwen), **ENGINE)
    assert answers(engine, jobs) == wanted(qwen, jobs, None)
    with pytest.raises(ValueError, match=r"hf_overrides must have vitcop for an engine of Qwen2.5-VL"):
        answers(engine, jobs[:1], SETTINGS["early"])
    assert answers(engine, jobs) == wanted(qwen, jobs, None)


@pytest.mark.parametrize(
    "change",
    [
        {"pipeline_parallel_size": 2},
        {"prefill_context_parallel_size": 2},
        {"use_ubatching": True},
        {"method": "eagle"},
        {"method": "draft_model"},
        {"video_pruning_rate": 0.5},
        {"enable_tower_connector_lora": True},
    ],
    ids=str,
)
def test_engines_that_would_lose_places_are_refused(change: dict[str, Any]) -> None:
    check_engine(configuration())
    check_engine(configuration(method="ngram", video_pruning_rate=0.0))
    (value,) = change.values()
    with pytest.raises(ValueError, match=rf"must be .* where vitcop prunes images.*, got {value}"):
        check_engine(configuration(**change))


def test_places_are_added_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step may be run again to warm up, or be padded; the next one may have no image."""
    ran: list[torch.Tensor] = []
    base = PrunedQwen25VL.__mro__[2]
    monkeypatch.setattr(base, "forward", lambda self, ids, positions, *_: ran.append(positions.clone()))
    monkeypatch.setattr(base, "embed_input_ids", lambda self, ids, given, **_: torch.cat([torch.zeros(0, 2), *given]))
    model = PrunedQwen25VL.__new__(PrunedQwen25VL)
    torch.nn.Module.__init__(model)
    model.config, model._moves = SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=2)), False
    model.register_buffer("_beside", torch.zeros((2, 8), dtype=torch.int64))

    pruned = torch.tensor([[1.0, 1, 0, 3, 1, 2], [1, 1, 1, 4, 0, 5]])  # row 3, column 130; row 132, column 5
    whole, is_image = torch.full((1, 2), 7.0), torch.tensor([False, True, True, False, True])
    embeds = model.embed_input_ids(torch.arange(5), [pruned, whole], is_multimodal=is_image)
    assert torch.equal(embeds, torch.tensor([[1.0, 1], [1, 1], [7, 7]]))
    positions = torch.zeros((3, 6), dtype=torch.int64)
    model(None, positions, None, embeds)
    model(None, positions, None, embeds)
    assert ran[0].tolist() == [[0] * 6, [0, 3, 132, 0, 0, 0], [0, 130, 5, 0, 0, 0]]
    assert torch.equal(ran[1], ran[0])

    model.embed_input_ids(torch.arange(2), [pruned], is_multimodal=torch.tensor([True, True]))
    model.embed_input_ids(torch.arange(2), [], is_multimodal=torch.tensor([False, False]))
    model(None, positions.zero_(), None, embeds)
    assert not ran[2].any()


def configuration(
    method: str | None = None,
    video_pruning_rate: float | None = None,
    enable_tower_connector_lora: bool | None = None,
    **parallel: Any,
) -> Any:
    """What `check_engine` reads of vLLM's configuration."""
    multimodal = SimpleNamespace(video_pruning_rate=video_pruning_rate)
    return SimpleNamespace(
        parallel_config=SimpleNamespace(**{"pipeline_parallel_size": 1, "use_ubatching": False} | parallel),
        lora_config=enable_tower_connector_lora
        if enable_tower_connector_lora is None
        else SimpleNamespace(enable_tower_connector_lora=enable_tower_connector_lora),
        speculative_config=None if method is None else SimpleNamespace(method=method),
        model_config=SimpleNamespace(get_multimodal_config=lambda: multimodal),
    )
