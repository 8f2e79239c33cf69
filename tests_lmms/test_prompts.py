"""Prompts, visuals, and settings of answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitcop_llava.tools.lmms.arguments import Arguments
from vitcop_llava.tools.lmms.generation import cut, read_generation
from vitcop_llava.tools.lmms.prompts import render, turn_of, turns_of
from vitcop_llava.tools.lmms.visuals import Clipping, read_visual
from vitcop_llava.tools.media.video_support import Clip, Sampling
from vitcop_llava.tools.model.loading import Loaded

PICTURE = Image.new("RGB", (20, 10), "red")
PLAIN = Clipping()


@pytest.mark.parametrize(
    ("text", "count", "wanted"),
    [
        ("What?", 1, "USER: <image>\nWhat? ASSISTANT:"),
        ("What?", 2, "USER: <image>\n<image>\nWhat? ASSISTANT:"),
        ("Is <image> in <image>?", 2, "USER: Is <image> in <image>? ASSISTANT:"),
        ("What?", 0, "USER: What? ASSISTANT:"),
    ],
)
def test_pictures_stand_where_a_text_says_and_first_otherwise(text: str, count: int, wanted: str, demo: Loaded) -> None:
    prompt = render(demo.processor, [turn_of(text, [PICTURE] * count, PLAIN)])
    assert (prompt.text, len(prompt.media)) == (wanted, count)


def test_messages_keep_their_order(demo: Loaded, tmp_path: Path) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "image", "url": PICTURE}, {"type": "text", "text": "Color?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
    ]
    turns = turns_of(messages, PLAIN)
    sentence, prompt = render(demo.processor, turns[1:], "vicuna").text.split("USER: ", 1)
    assert prompt == "<image>\nColor? ASSISTANT: red</s>USER: Sure? ASSISTANT:"
    assert sentence.startswith("A chat between a curious user")
    own = tmp_path / "own.jinja"
    parts = "{% for p in m.content %} {{ p.text or '<image>' }}{% endfor %}"
    own.write_text("{% for m in messages %}[{{ m.role }}" + parts + "]{% endfor %}")
    wanted = "[system Be short.][user <image> Color?][assistant red][user Sure?]"
    assert render(demo.processor, turns, str(own)).text == wanted
    with pytest.raises(ValueError, match="content must be of text, images and videos, got 'audio'"):
        turns_of([{"role": "user", "content": [{"type": "audio", "url": "a.wav"}]}], PLAIN)


def test_visuals_come_in_every_form(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    PICTURE.save(path)
    assert isinstance(read_visual(str(path), PLAIN), Image.Image)
    frames = Clipping(Sampling(frames=3))
    pixels = np.stack([np.full((4, 5, 3), number, np.uint8) for number in range(7)])
    for visual in (pixels, [Image.fromarray(frame) for frame in pixels]):
        found = read_visual(visual, frames)
        assert isinstance(found, Clip)
        assert found.frames[:, 0, 0, 0].tolist() == [0, 2, 4]
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(pixels[:2]):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{number}.jpg")
    assert len(read_visual(tmp_path / "frames", frames).frames) == 2  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="a folder of pictures, got"):
        read_visual(Path(__file__).parent, PLAIN)


def test_too_many_pictures_are_the_frames_of_a_clip_where_a_model_reads_clips() -> None:
    for gathers, kinds in ((True, [Clip]), (False, [Image.Image] * 4)):
        clipping = Clipping(Sampling(frames=3), gathers)
        assert [type(part) for part in turn_of("What?", [PICTURE] * 4, clipping).parts] == [*kinds, str]
        items = [{"type": "image", "url": PICTURE}] * 4
        (turn,) = turns_of([{"role": "user", "content": [*items, {"type": "text", "text": "What?"}]}], clipping)
        assert [type(part) for part in turn.parts] == [*kinds, str]
        assert len(turn_of("What?", [PICTURE] * 3, clipping).parts) == 4


def test_pictures_are_padded_to_squares_on_request(demo: Loaded) -> None:
    clipping = Arguments(image_aspect_ratio="pad").clipping(demo)
    square = read_visual(PICTURE, clipping)
    assert isinstance(square, Image.Image)
    assert square.size == (20, 20)
    border, red = (122, 116, 104), (255, 0, 0)
    assert [square.getpixel((0, row)) for row in (0, 5, 14, 19)] == [border, red, red, border]
    with pytest.raises(ValueError, match="image_aspect_ratio must be one of original, pad"):
        Arguments(image_aspect_ratio="anyres")


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"method": "none"}, "None"),
        ({"retain": 64}, "retained_tokens=64,"),
        ({"retain": "1/3"}, "Fraction(1, 3)"),
        ({}, "Fraction(1, 9)"),
        ({"method": "'fastv(keep=30)'"}, "FastV(retained_tokens=None, retention_ratio=None, keep=30"),
    ],
)
def test_arguments_say_method_and_budget(settings: dict[str, Any], wanted: str) -> None:
    assert wanted in repr(Arguments(**settings).find_method())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "none", "retain": 64}, "retain must be left out with method=none"),
        ({"retain": "half"}, "retain must be a number of tokens"),
        ({"method": "zip"}, "text must be one of vitcop"),
        ({"max_frames_num": 0}, "max_frames_num must be an integer >= 1"),
    ],
)
def test_arguments_that_fit_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Arguments(**settings).find_method()


@pytest.mark.parametrize(
    ("given", "samples"),
    [
        ({}, False),
        ({"temperature": 0, "do_sample": True}, False),
        ({"temperature": 0.7}, True),
        ({"temperature": 0.7, "do_sample": False}, False),
        ({"do_sample": True}, True),
    ],
)
def test_an_answer_is_sampled_where_a_task_says_so(given: dict[str, Any], samples: bool) -> None:
    found = read_generation(given | {"top_p": 0.5, "until": "a", "stop_sequences": ["b", ""]})
    assert found.arguments["do_sample"] is samples
    assert found.arguments["top_p"] == (0.5 if samples else None)
    assert found.until == ("a", "b")
    assert cut("xbya", found.until) == "x"
