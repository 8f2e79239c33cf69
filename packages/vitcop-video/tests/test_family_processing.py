"""Text and frames to the model's inputs, as transformers' own processors make them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaNextProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

import vitcop_llava
from vitcop_llava.tools.demo.build import demo_processor
from vitcop_video.processing import ClipProcessor, expand_video_tokens

PINPOINTS = [[64, 128], [128, 64], [128, 128]]
SQUARE = {"height": 64, "width": 64}

# The stock processor needs torchvision, whose only build on the package index is for CUDA: installed beside a torch for
# CPUs it breaks transformers, but from a folder of its own, and with the two schemas that are defined here, it serves.
STOCK = """
import sys, numpy as np, torch
sys.path.insert(0, sys.argv[4])
library = torch.library.Library("torchvision", "FRAGMENT")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from transformers.models.llava_next_video.video_processing_llava_next_video import LlavaNextVideoVideoProcessor
size = int(sys.argv[3])
stock = LlavaNextVideoVideoProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
frames = torch.from_numpy(np.load(sys.argv[1])).permute(0, 3, 1, 2)
np.save(sys.argv[2], stock(videos=[frames], return_tensors="pt")["pixel_values_videos"].numpy())
"""


def frames_of(count: int, height: int, width: int, seed: int = 0) -> Any:
    """Smooth random frames, uint8."""
    rng = np.random.default_rng([count, height, width, seed])
    coarse = [Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)) for _ in range(count)]
    return np.stack([np.asarray(each.resize((width, height), Image.Resampling.BICUBIC)) for each in coarse])


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    found = demo_processor(12).tokenizer
    found.add_special_tokens({"additional_special_tokens": ["<video>"]})
    return found


@pytest.fixture(scope="module")
def processor(tokenizer: PreTrainedTokenizerFast) -> ClipProcessor:
    return ClipProcessor(
        tokenizer,
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": 64}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS
        ),
        frame_processor=CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size=SQUARE),
        patch_size=8,
    )


@pytest.mark.parametrize(("height", "width"), [(90, 160), (161, 91), (64, 64), (30, 300), (40, 40)])
def test_pixels_are_resized_cropped_and_normalized(processor: ClipProcessor, height: int, width: int) -> None:
    frames = frames_of(3, height, width)
    found = processor.pixels(frames)
    short = min(height, width)
    across, down = int(width * 64 / short), int(height * 64 / short)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_MEAN, OPENAI_STD))
    for frame, pixels in zip(frames, found, strict=True):
        resized = Image.fromarray(frame).resize((across, down), Image.Resampling.BICUBIC)
        left, top = (across - 64) // 2, (down - 64) // 2
        cropped = np.asarray(resized.crop((left, top, left + 64, top + 64)))
        wanted = (torch.from_numpy(cropped.copy()).permute(2, 0, 1) / 255 - mean) / std
        torch.testing.assert_close(pixels, wanted, atol=0.02, rtol=0)


OPENAI_MEAN = [0.48145466, 0.4578275, 0.40821073]
OPENAI_STD = [0.26862954, 0.26130258, 0.27577711]


@pytest.mark.parametrize(("height", "width", "size"), [(90, 160, 64), (161, 91, 64), (720, 1280, 336), (64, 64, 64)])
def test_pixels_equal_the_stock_processors(
    torchvision: str, tmp_path: Path, height: int, width: int, size: int
) -> None:
    frames = frames_of(4, height, width)
    np.save(tmp_path / "frames.npy", frames)
    command = [sys.executable, "-W", "ignore", "-c", STOCK, "frames.npy", "pixels.npy", str(size), torchvision]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=300)
    side = {"height": size, "width": size}
    tokenizer = demo_processor(12).tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<video>"]})
    frame_processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=side)
    found = ClipProcessor(tokenizer, frame_processor=frame_processor).pixels(frames)
    apart = (found[None] - torch.from_numpy(np.load(tmp_path / "pixels.npy"))).abs()
    # Both round to whole levels between their two passes: one level apart, 0.015, and two in a few pixels of a million.
    assert int((apart > 0.02).sum()) <= 1 + apart.numel() / 100_000
    assert float(apart.max()) < 0.03


def test_pictures_and_arrays_are_alike(processor: ClipProcessor) -> None:
    frames = frames_of(3, 90, 160)
    pictures = [Image.fromarray(frame) for frame in frames]
    assert torch.equal(processor.pixels(frames), processor.pixels(pictures))
    assert torch.equal(processor.pixels(frames), processor.pixels(torch.from_numpy(frames)))


def test_prompt_has_as_many_placeholders_as_the_model_has_tokens(processor: ClipProcessor) -> None:
    clips = [frames_of(4, 90, 160), frames_of(2, 50, 80)]
    inputs = processor(["what <video> is", "the <video> color"], videos=clips, padding=True)
    counts = (inputs["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<video>")).sum(1)
    assert counts.tolist() == [64, 32]
    assert [tuple(clip.shape) for clip in inputs["pixel_values_videos"]] == [(4, 3, 64, 64), (2, 3, 64, 64)]
    alike = processor(["what <video> is <video>"], videos=[clips[0], clips[0]])
    assert tuple(alike["pixel_values_videos"].shape) == (2, 4, 3, 64, 64)


def test_released_model_has_144_tokens_a_frame(tokenizer: Any) -> None:
    processor = ClipProcessor(tokenizer)
    assert processor.tokens_per_frame == 144
    inputs = processor("what <video> is", videos=[frames_of(8, 72, 128)])
    assert int((inputs["input_ids"] == tokenizer.convert_tokens_to_ids("<video>")).sum()) == 1152
    assert tuple(inputs["pixel_values_videos"].shape) == (1, 8, 3, 336, 336)


def test_images_are_those_of_transformers(processor: ClipProcessor) -> None:
    picture = Image.fromarray(frames_of(1, 90, 160)[0])
    stock = LlavaNextProcessor(
        image_processor=processor.image_processor,
        tokenizer=processor.tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    wanted = stock(text="what <image> is", images=[picture], return_tensors="pt")
    found = processor("what <image> is", images=[picture])
    assert sorted(found) == sorted(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_inputs_run_pruned(build_video: Callable[..., Any], processor: ClipProcessor, budget: Any) -> None:
    model = build_video(vocabulary=max(100, len(processor.tokenizer)))
    for name in ("image", "video"):
        setattr(model.config, f"{name}_token_id", processor.tokenizer.convert_tokens_to_ids(f"<{name}>"))
    picture = Image.fromarray(frames_of(1, 90, 160)[0])
    clips = [frames_of(4, 90, 160), frames_of(2, 50, 80)]
    texts = ["what <video> is", "the <image> color <video> where"]
    inputs = processor(texts, videos=clips, images=[picture], padding=True, padding_side="left")
    with torch.no_grad(), vitcop_llava.prune(model, budget("1/3")) as pruner:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
        assert [row.images for row in pruner.report.rows] == [1, 2]


def test_settings_of_a_checkpoint_are_read(processor: ClipProcessor, tmp_path: Path) -> None:
    processor.tokenizer.save_pretrained(tmp_path)
    processor.image_processor.save_pretrained(tmp_path)
    video = {"size": {"shortest_edge": 64}, "crop_size": SQUARE, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(video))
    (tmp_path / "processor_config.json").write_text(json.dumps({"patch_size": 8}))
    (tmp_path / "chat_template.jinja").write_text("{{ messages | length }} <video>")
    found = ClipProcessor.from_pretrained(str(tmp_path))
    assert (found.patch_size, found.frame_size, found.tokens_per_frame) == (8, 64, 16)
    pixels = found.pixels(frames_of(2, 64, 64))
    assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1  # not shifted by a mean
    assert found.apply_chat_template([{"role": "user", "content": "a"}]) == "1 <video>"


@pytest.mark.parametrize(
    ("clip", "error", "message"),
    [
        (np.zeros((2, 8, 8, 3)), TypeError, "videos must be of uint8, got float64"),
        (np.zeros((8, 8, 3), np.uint8), ValueError, r"\[frames, height, width, 3\], got \(8, 8, 3\)"),
        (np.zeros((2, 8, 8, 4), np.uint8), ValueError, "must be of shape"),
        (np.zeros((0, 8, 8, 3), np.uint8), ValueError, "must be of shape"),
        ([], ValueError, "one frame at least"),
        ("clip.mp4", TypeError, "arrays or lists of pictures, got str"),
        ([1, 2], TypeError, "arrays or lists of pictures, got list"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_clip_is_refused_by_name(processor: ClipProcessor, clip: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        processor("a <video>", videos=[clip])


def test_clip_in_place_of_a_list_is_refused(processor: ClipProcessor) -> None:
    clip: Any = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=r"videos must be a list of clips, got one of shape \(2, 8, 8, 3\)"):
        processor("a <video>", videos=clip)


def test_clips_and_tokens_must_agree() -> None:
    with pytest.raises(ValueError, match="videos must be as many as <video> in text, which is 1, got 2"):
        expand_video_tokens(["a <video>"], [2, 2], 4)
    with pytest.raises(ValueError, match="which is 1, got 0"):
        expand_video_tokens(["a <video>"], [], 4)
    assert expand_video_tokens(["a", "<video><video>b"], [1, 2], 1) == ["a", "<video><video><video>b"]


def test_processor_refuses_what_does_not_fit(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="video_token must be a token of the tokenizer, got '<clip>'"):
        ClipProcessor(tokenizer, video_token="<clip>")
    wide = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 48})
    with pytest.raises(ValueError, match="frame_processor must crop to squares"):
        ClipProcessor(tokenizer, frame_processor=wide)
