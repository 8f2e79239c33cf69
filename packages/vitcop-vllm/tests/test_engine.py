"""vLLM gives the tokens that a pruned model of transformers gives, under the same settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_vllm import EARLY, ENGINE, HOW, ONE, REFUSED, TEXT, TWO, ZIP, Job, answers, expected, pictures
from transformers import (
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
)

import vitcop_llava
from vitcop_core import find_method

LAYER0: dict[str, Any] = {"method": "earlyvitcop(cutoff_distance=3.0, ranking='layer0')", "retained_tokens": 36}
DIVERSE: dict[str, Any] = {"method": "divprune", "retained_tokens": 36}


@pytest.fixture(scope="module")
def jobs() -> list[Job]:
    images = pictures([(168, 168)] * 4)
    return [*((ONE, [image]) for image in images), (TWO, images[:2]), (TEXT, []), (TWO, images[2:])]


def test_without_settings_nothing_changes(llava: Path, engine: Any, jobs: list[Job]) -> None:
    assert answers(engine, jobs) == expected(llava, LlavaForConditionalGeneration, jobs, None)


@pytest.mark.parametrize("settings", [EARLY, LAYER0, ZIP, DIVERSE], ids=["early", "layer0", "zip", "diverse"])
def test_settings_of_a_request(llava: Path, engine: Any, jobs: list[Job], settings: dict[str, Any]) -> None:
    wanted = expected(llava, LlavaForConditionalGeneration, jobs, settings)
    assert wanted != expected(llava, LlavaForConditionalGeneration, jobs, None)
    assert answers(engine, jobs, settings) == wanted
    assert answers(engine, jobs, settings) == wanted  # from the prefix cache
    assert [answers(engine, [job], settings)[0] for job in jobs] == wanted


def test_methods_and_whole_images_in_one_batch_are_never_mixed(llava: Path, engine: Any, jobs: list[Job]) -> None:
    from vllm import SamplingParams

    mixed = (EARLY, None, ZIP)
    requests = [
        {"prompt": prompt, "multi_modal_data": {"image": images}}
        | ({} if settings is None else {"mm_processor_kwargs": {"vitcop": settings}})
        for prompt, images in jobs[:4]
        for settings in mixed
    ]
    found = engine.generate(requests, SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
    each = [expected(llava, LlavaForConditionalGeneration, jobs[:4], settings) for settings in mixed]
    wanted = [tokens for several in zip(*each, strict=True) for tokens in several]
    assert [list(each.outputs[0].token_ids) for each in found] == wanted


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_settings_that_do_not_fit_are_refused_and_the_engine_lives_on(
    llava: Path, engine: Any, jobs: list[Job], settings: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        answers(engine, jobs[:1], settings)
    assert answers(engine, jobs[:1], ZIP) == expected(llava, LlavaForConditionalGeneration, jobs[:1], ZIP)


def test_embeddings_need_no_plugin(llava: Path, jobs: list[Job]) -> None:
    from vllm import LLM, SamplingParams

    model = LlavaForConditionalGeneration.from_pretrained(llava, dtype=torch.float32).eval()
    processor, method = AutoProcessor.from_pretrained(llava), find_method(EARLY["method"], retained_tokens=36)
    pixels = processor.image_processor([images[0] for _, images in jobs[:4]], return_tensors="pt")["pixel_values"]
    embeddings = vitcop_llava.embed_images(model, method, pixel_values=pixels)
    engine = LLM(model=str(llava), enable_mm_embeds=True, **ENGINE)
    requests = [{"prompt": ONE, "multi_modal_data": {"image": [each]}} for each in embeddings]
    found = engine.generate(requests, SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
    wanted = expected(llava, LlavaForConditionalGeneration, jobs[:4], EARLY)
    assert [list(each.outputs[0].token_ids) for each in found] == wanted


@pytest.mark.parametrize("how", HOW)
def test_settings_of_the_engine_for_tiles(llava_next: Path, how: str) -> None:
    from vllm import LLM

    images = pictures([(168, 168), (300, 90), (80, 333), (336, 200)], seed=1)
    jobs: list[Job] = [*((ONE, [image]) for image in images), (TWO, images[1:3]), (TEXT, [])]
    settings = {"method": LAYER0["method"], "retention_ratio": 1 / 4}
    engine = LLM(model=str(llava_next), hf_overrides={"vitcop": settings}, **{**ENGINE, **HOW[how]})
    assert answers(engine, jobs) == expected(llava_next, LlavaNextForConditionalGeneration, jobs, settings)


def test_tower_without_cls(siglip: Path, jobs: list[Job]) -> None:
    from vllm import LLM

    engine = LLM(model=str(siglip), hf_overrides={"vitcop": EARLY}, **ENGINE)
    assert answers(engine, jobs) == expected(siglip, LlavaForConditionalGeneration, jobs, EARLY)
    assert answers(engine, jobs, ZIP) == expected(siglip, LlavaForConditionalGeneration, jobs, ZIP)
    with pytest.raises(ValueError, match="model must have a vision tower with a CLS token for VisionZip"):
        answers(engine, jobs[:1], {"method": "visionzip(vision_saliency='cls')", "retained_tokens": 36})


@pytest.mark.parametrize("settings", [EARLY, LAYER0, ZIP, DIVERSE], ids=["early", "layer0", "zip", "diverse"])
def test_onevision(onevision: Path, settings: dict[str, Any], onevision_engine: Any) -> None:
    # The last is interpolated, and so no longer all of patches.
    jobs: list[Job] = [(ONE, [image]) for image in pictures([(98, 98), (300, 90), (80, 333), (420, 400)], seed=2)]
    share = {"method": settings["method"], "retention_ratio": 1 / 4}
    wanted = expected(onevision, LlavaOnevisionForConditionalGeneration, jobs, share)
    assert answers(onevision_engine, jobs, share) == wanted


def test_onevision_without_settings_nothing_changes(onevision: Path, onevision_engine: Any) -> None:
    jobs: list[Job] = [(ONE, [image]) for image in pictures([(98, 98), (420, 400)], seed=2)]
    wanted = expected(onevision, LlavaOnevisionForConditionalGeneration, jobs, None)
    assert answers(onevision_engine, jobs) == wanted
