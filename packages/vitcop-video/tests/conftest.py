"""Clips of every kind, encoded once; small random LLaVA-NeXT-Video models, and prompts of words, pictures and clips."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from vitcop_llava import ViTCoP, tile_image
from vitcop_video import backend_status
from vitcop_video.clips import WRITES_ROTATION, ClipSettings, write_clip

IMAGE_TOKEN, VIDEO_TOKEN = 98, 99
SIDE, PATCH = 64, 8
TOKENS = 16  # of one frame: 8 x 8 patches, pooled 2 x 2
PINPOINTS = [[64, 128], [128, 64], [128, 128]]
TEXT_CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vitcop-video")
    group.addoption("--torchvision", metavar="FOLDER", help="where torchvision is, to compare with its processor")


@pytest.fixture(scope="session")
def torchvision(request: pytest.FixtureRequest) -> str:
    """The folder with torchvision."""
    folder = request.config.getoption("--torchvision", default=None)  # unknown where pytest was given no folder
    if folder is None:
        pytest.skip("--torchvision names no folder with torchvision")
    return str(request.config.invocation_params.dir / folder)  # tests run in folders of their own


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch.set_grad_enabled("video_inputs" not in request.fixturenames):
        yield


def _config(kind: str, mode: str, side: int, vocabulary: int, tower: str) -> LlavaNextVideoConfig:
    text: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
    }
    if kind == "mistral":
        text["sliding_window"] = None
    towers: dict[str, Any] = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}
    vision = towers[tower](
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=side,
        patch_size=PATCH,
    )
    make: Any = LlavaNextVideoConfig
    config: LlavaNextVideoConfig = make(
        vision_config=vision,
        text_config=TEXT_CONFIGS[kind](**text),
        image_token_index=IMAGE_TOKEN,
        video_token_index=VIDEO_TOKEN,
        image_grid_pinpoints=[[a * side // SIDE, b * side // SIDE] for a, b in PINPOINTS],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default" if tower == "clip" else "full",
        spatial_pool_mode=mode,
        spatial_pool_stride=2,
    )
    return config


@pytest.fixture(scope="session")
def build_video() -> Callable[..., Any]:
    """A model of 8 decoder layers and 16 tokens a frame; one object for each set of arguments."""

    @cache
    def make(
        kind: str = "llama",
        attention: str = "sdpa",
        mode: str = "average",
        side: int = SIDE,
        vocabulary: int = 100,
        tower: str = "clip",
    ) -> Any:
        config = _config(kind, mode, side, vocabulary, tower)
        config._attn_implementation = attention
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model: Any = LlavaNextVideoForConditionalGeneration(config)
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    torch.nn.init.normal_(parameter, std=0.7 / parameter.shape[-1] ** 0.5)
        # An answer that is computed again must hold no placeholder.
        model.generation_config.suppress_tokens = [IMAGE_TOKEN, VIDEO_TOKEN]
        model.eval()
        # transformers puts hooks of its own on a model when outputs are first asked for.
        tokens = (side // PATCH // 2) ** 2
        ids = torch.tensor([[1, *[VIDEO_TOKEN] * tokens, 5]])
        with torch.no_grad():
            model(input_ids=ids, pixel_values_videos=torch.zeros(1, 1, 3, side, side), output_hidden_states=True)
        return model

    return make


@pytest.fixture(scope="session")
def video_model(build_video: Callable[..., Any]) -> Any:
    return build_video()


def _pixels(frames: int, seed: int) -> torch.Tensor:
    return torch.randn(frames, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def video_inputs() -> Callable[..., dict[str, Any]]:
    """The model's inputs from rows of parts.

    A number stands for so many words, ``"clip4"`` for a clip of 4 frames, a pair for a picture of that width and
    height. Clips of one length come as a tensor, of several as a list.
    """

    def make(rows: list[list[Any]], side: str = "left", *, listed: bool = False) -> dict[str, Any]:
        ids, clips, pictures, sizes = [], [], [], []
        for row in rows:
            own = [1]
            for number, part in enumerate(row):
                if isinstance(part, int):
                    own += [3 + (7 * k + part + number) % 90 for k in range(part)]
                elif isinstance(part, str):
                    frames = int(part.removeprefix("clip"))
                    clips.append(_pixels(frames, 10 * frames + number))
                    own += [VIDEO_TOKEN] * (frames * TOKENS)
                else:
                    width, height = part
                    tiling = tile_image(height, width, pinpoints=PINPOINTS, tile_size=SIDE, patch_size=PATCH)
                    pictures.append(_pixels(len(tiling.boxes), width + height))
                    sizes.append([height, width])
                    own += [IMAGE_TOKEN] * tiling.placeholders
            ids.append(own)
        longest = max(map(len, ids))

        def padded(values: list[int]) -> torch.Tensor:
            missing = longest - len(values)
            return functional.pad(torch.tensor(values), (missing, 0) if side == "left" else (0, missing))

        given: dict[str, Any] = {
            "input_ids": torch.stack([padded(own) for own in ids]),
            "attention_mask": torch.stack([padded([1] * len(own)) for own in ids]),
        }
        if clips:
            alike = len({len(clip) for clip in clips}) == 1 and not listed
            given["pixel_values_videos"] = torch.stack(clips) if alike else clips
        if pictures:
            most = max(map(len, pictures))
            full = [functional.pad(each, (0, 0, 0, 0, 0, 0, 0, most - len(each))) for each in pictures]
            given |= {"pixel_values": torch.stack(full), "image_sizes": torch.tensor(sizes)}
        return given

    return make


@pytest.fixture(scope="session")
def budget() -> Callable[..., ViTCoP]:
    """ViTCoP at a share of the tokens, with a cutoff distance that fits the small tower."""

    def make(share: str = "1/3", **settings: Any) -> ViTCoP:
        retention = {} if {"ratios", "retained_tokens"} & set(settings) else {"retention_ratio": Fraction(share)}
        return ViTCoP(**{"cutoff_distance": 3.0, **retention, **settings})

    return make


REALTIME = {"deadline": "realtime", "cpu-used": "8"}
VARIABLE = [int(tick) for tick in np.cumsum(np.random.default_rng(0).integers(1, 9, 60)) * 100]
CLIPS = {
    "b-frames.mp4": ClipSettings(options={"bf": "3", "b_strategy": "0"}),
    "header-first.mp4": ClipSettings(options={"bf": "3"}, container={"movflags": "faststart"}),
    "open-gop.mp4": ClipSettings(
        options={"bf": "3", "b_strategy": "0", "x264-params": "open-gop=1:keyint=12:min-keyint=12"}
    ),
    "fragmented.mp4": ClipSettings(options={"bf": "3"}, container={"movflags": "frag_keyframe+empty_moov"}),
    "interlaced.mp4": ClipSettings(height=96, options={"bf": "2", "x264-params": "tff=1:interlaced=1"}),
    "long-gop.mp4": ClipSettings(frames=120, gop=100, options={"bf": "3", "sc_threshold": "0"}),
    "ten-bit.mp4": ClipSettings(pixel_format="yuv420p10le"),
    "variable.mp4": ClipSettings(ticks=VARIABLE, time_base=Fraction(1, 6000)),
    "variable.mkv": ClipSettings(ticks=VARIABLE, time_base=Fraction(1, 6000)),
    "late.mp4": ClipSettings(ticks=range(30, 90), time_base=Fraction(1, 30)),
    "odd.mp4": ClipSettings(width=161, height=91, pixel_format="yuv444p"),
    "odd.webm": ClipSettings(width=161, height=91, codec="libvpx-vp9", options=REALTIME),
    "vp9.webm": ClipSettings(codec="libvpx-vp9", options=REALTIME),
    "av1.mp4": ClipSettings(frames=12, codec="libsvtav1", options={"preset": "12"}),
    "hevc.mp4": ClipSettings(
        codec="libx265", options={"x265-params": "log-level=none:open-gop=1:b-adapt=0:bframes=3:scenecut=0"}
    ),
    "motion.avi": ClipSettings(codec="mjpeg", pixel_format="yuvj420p"),
    "motion.mov": ClipSettings(codec="mjpeg", pixel_format="yuvj420p"),
    "mpeg4.avi": ClipSettings(codec="mpeg4"),
    "stream.ts": ClipSettings(options={"bf": "3"}),
    "turned-90.mp4": ClipSettings(rotation=90),
    "turned-180.mp4": ClipSettings(rotation=180),
    "turned-270.mp4": ClipSettings(rotation=270),
    "one.mp4": ClipSettings(frames=1),
}
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skip(reason=reason) if reason else ())
    for name, reason in backend_status().items()
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", BACKENDS)
    if "clip_name" in metafunc.fixturenames:
        metafunc.parametrize("clip_name", [*CLIPS, "cut.mp4"])


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The path of a clip by name."""
    folder = tmp_path_factory.mktemp("clips")

    def make(name: str) -> Path:
        path = folder / name
        if not path.exists():
            if name == "cut.mp4":
                cut(make("b-frames.mp4"), path)
            else:
                if CLIPS[name].rotation and not WRITES_ROTATION:
                    pytest.skip("this PyAV writes no rotation")
                write_clip(path, CLIPS[name])
        return path

    return make


def cut(source: Path, path: Path) -> None:
    """Leaves out the first half second without encoding again: an edit list hides the frames before it."""
    with av.open(str(source)) as whole, av.open(str(path), "w") as part:
        stream = whole.streams.video[0]
        copy = part.add_stream_from_template(stream)
        shift = round(0.5 / (stream.time_base or Fraction(1)))
        for packet in whole.demux(stream):
            if packet.pts is None or packet.dts is None:
                continue
            if packet.dts < round(0.3 / (stream.time_base or Fraction(1))):
                continue
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
            part.mux(packet)


@pytest.fixture(scope="session")
def decoded(clip: Callable[[str], Path]) -> Callable[[str], tuple[NDArray[np.uint8], NDArray[np.float64]]]:
    """Every frame of a clip, upright, and when it appears: by PyAV, from the first to the last, with nothing sought."""
    known: dict[str, tuple[NDArray[np.uint8], NDArray[np.float64]]] = {}

    def decode(name: str) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        if name not in known:
            pixels, times = [], []
            with av.open(str(clip(name))) as container:
                for frame in container.decode(video=0):
                    image = frame.to_ndarray(format="rgb24", interpolation="BICUBIC")
                    pixels.append(np.rot90(image, frame.rotation // 90))
                    times.append((frame.pts or 0) * (frame.time_base or Fraction(1)))
            known[name] = np.stack(pixels).astype(np.uint8), np.array([float(time - times[0]) for time in times])
        return known[name]

    return decode
