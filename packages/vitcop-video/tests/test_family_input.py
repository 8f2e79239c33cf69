"""LLaVA-NeXT-Video: bad input is named, and the family is found."""

import tomllib
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

import vitcop_llava
from vitcop_llava import ViTCoP, families
from vitcop_video.family import locate

Inputs = Callable[..., dict[str, Any]]
Change = Callable[[dict[str, Any]], dict[str, Any]]
NAME = "LlavaNextVideoForConditionalGeneration"


def with_pixels(change: Callable[[Any], Any]) -> Change:
    return lambda inputs: {**inputs, "pixel_values_videos": change(inputs["pixel_values_videos"])}


CALLS: dict[str, tuple[Change, type[Exception], str]] = {
    "no-video": (
        lambda inputs: {name: inputs[name] for name in ("input_ids", "attention_mask")},
        ValueError,
        r"pixel_values_videos must be given with the 64 video placeholders \(token 99\) in input_ids",
    ),
    "image-for-video": (
        lambda inputs: {
            **{name: inputs[name] for name in ("input_ids", "attention_mask")},
            "pixel_values": torch.zeros(1, 2, 3, 64, 64),
            "image_sizes": [(64, 128)],
        },
        ValueError,
        "pixel_values_videos must be given with the 64 video placeholders",
    ),
    "fewer-frames": (
        with_pixels(lambda pixels: pixels[:, :3]),
        ValueError,
        "input_ids must hold 48 placeholders for clips of 3 frames in pixel_values_videos, got 64",
    ),
    "more-frames": (
        with_pixels(lambda pixels: torch.cat([pixels, pixels], dim=1)),
        ValueError,
        "input_ids must hold 128 placeholders for clips of 8 frames in pixel_values_videos, got 64",
    ),
    "no-frames": (with_pixels(lambda pixels: pixels[:, :0]), ValueError, "with one frame at least"),
    "no-clip-dimension": (
        with_pixels(lambda pixels: pixels[0]),
        ValueError,
        r"must be of shape \[clips, frames, 3, 64, 64\].*got \(4, 3, 64, 64\)",
    ),
    "other-side": (with_pixels(lambda pixels: pixels[..., :48, :48]), ValueError, "pixel_values_videos must be of sh"),
    "channels": (with_pixels(lambda pixels: pixels[:, :, :1]), ValueError, "pixel_values_videos must be of shape"),
    "listed-five": (with_pixels(lambda pixels: [pixels]), ValueError, r"\[frames, 3, 64, 64\] in a list"),
    "list-of-lists": (with_pixels(lambda pixels: pixels.tolist()), TypeError, "a list with a tensor for each clip"),
    "layer": (lambda inputs: {**inputs, "vision_feature_layer": 1}, ValueError, "vision_feature_layer must be 3"),
    "strategy": (
        lambda inputs: {**inputs, "vision_feature_select_strategy": "full"},
        ValueError,
        "vision_feature_select_strategy must be 'default'",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_call_is_refused_by_name(video_model: Any, video_inputs: Inputs, budget: Any, case: str) -> None:
    change, error, message = CALLS[case]
    inputs = video_inputs([[2, "clip4", 3]])
    with vitcop_llava.prune(video_model, budget()):
        wanted = video_model(**inputs).logits
        with pytest.raises(error, match=message):
            video_model(**change(inputs))
        assert torch.equal(video_model(**inputs).logits, wanted)


@pytest.mark.parametrize("case", ["fewer-frames", "no-video", "listed-five", "other-side"])
def test_generate_refuses_the_same(video_model: Any, video_inputs: Inputs, budget: Any, case: str) -> None:
    change, error, message = CALLS[case]
    inputs = change(video_inputs([[2, "clip4", 3]]))
    with vitcop_llava.prune(video_model, budget()), pytest.raises(error, match=message):
        video_model.generate(**inputs, max_new_tokens=2, do_sample=False)


def test_frames_in_the_wrong_row_are_named(video_model: Any, video_inputs: Inputs, budget: Any) -> None:
    inputs = video_inputs([[2, "clip2", 3], ["clip4", 3]])
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"][::-1]
    with (
        vitcop_llava.prune(video_model, budget()),
        pytest.raises(ValueError, match=r"whole videos in every row, got 32 in row 0.* the next takes 64"),
    ):
        video_model(**inputs)


def test_budget_that_does_not_fit_a_clip_names_its_frames(video_model: Any, video_inputs: Inputs) -> None:
    inputs = video_inputs([[2, "clip1", 3]])
    with (
        vitcop_llava.prune(video_model, ViTCoP(retained_tokens=30, cutoff_distance=3.0)),
        pytest.raises(ValueError, match="a clip of 1 frames with 16 visual tokens: "),
    ):
        video_model(**inputs)


def test_number_that_keeps_all_of_one_length_still_cuts_another(video_model: Any, video_inputs: Inputs) -> None:
    method = ViTCoP(retained_tokens=32, cutoff_distance=3.0)
    with vitcop_llava.prune(video_model, method) as pruner:
        for frames, pruned in ((2, False), (8, True)):
            video_model(**video_inputs([[2, f"clip{frames}", 3]]))
            assert pruner.report.pruned is pruned


def test_budget_that_fits_nothing_is_refused_at_once(video_model: Any) -> None:
    with pytest.raises(ValueError, match="retention_ratio must be from "):
        vitcop_llava.prune(video_model, ViTCoP(retention_ratio=0.01))


@pytest.mark.parametrize("stride", [0, 9])
def test_pooling_that_cannot_be_is_refused(video_model: Any, stride: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_model.config, "spatial_pool_stride", stride)
    with pytest.raises(ValueError, match="model must have a spatial_pool_stride from 1 to 8"):
        locate(video_model)


def test_entry_point_of_the_distribution_is_the_family(video_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    module, _, function = project["entry-points"][families.ENTRY_POINTS][NAME].partition(":")
    assert getattr(import_module(module), function) is locate
    monkeypatch.delitem(families._FAMILIES, NAME, raising=False)  # there once it was looked for
    entry = EntryPoint(NAME, f"{module}:{function}", families.ENTRY_POINTS)
    monkeypatch.setattr(families, "entry_points", lambda group, name: [entry] if name == NAME else [])
    assert families.locate(video_model).video == locate(video_model).video


def test_model_without_its_package_names_it(video_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(families._FAMILIES, NAME, raising=False)  # there once it was looked for
    monkeypatch.setattr(families, "entry_points", lambda group, name: [])
    with pytest.raises(TypeError, match=f"model must be of an installed family, got a {NAME}; pip install"):
        vitcop_llava.prune(video_model, ViTCoP(retention_ratio=1 / 3))
