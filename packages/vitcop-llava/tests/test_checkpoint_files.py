"""Checkpoints that may come from anywhere: refused soon, with a reason, whatever their numbers and files are."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import PaliGemmaConfig

from vitcop_llava.tools.model.checkpoint_files import check_config, check_generation
from vitcop_llava.tools.model.loading import DEMO_FOLDER, find_source, load
from vitcop_llava.tools.model.processors import ModelError


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint, to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def edit(path: Path, *keys: str, value: Any) -> None:
    """Set what lies under the keys, one inside of the other."""
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))


def refusal(folder: Path) -> str:
    """What loading says, which takes no time."""
    start = time.process_time()
    with pytest.raises(ModelError) as caught:
        load(str(folder), device="cpu")
    assert time.process_time() - start < 5
    return str(caught.value)


TOO_MUCH: list[tuple[tuple[str, ...], Any, str]] = [
    (("vision_config", "num_hidden_layers"), 10**9, "num_hidden_layers from 0 to 256, got 1000000000"),
    (("text_config", "num_hidden_layers"), 3000, "num_hidden_layers from 0 to 256, got 3000"),
    (("text_config", "num_hidden_layers"), -1, "num_hidden_layers from 0 to 256, got -1"),
    (("text_config", "num_hidden_layers"), 1e9, "num_hidden_layers from 0 to 256"),
    (("text_config", "num_hidden_layers"), 10**400, "num_hidden_layers from 0 to 256, got a longer number"),
    (("text_config", "hidden_size"), 10**12, "hidden_size from 1 to 262144"),
    (("text_config", "intermediate_size"), 2**62, "intermediate_size from 1 to 262144"),
    (("text_config", "hidden_size"), 0, "hidden_size from 1 to 262144, got 0"),
    (("text_config", "num_attention_heads"), 10**9, "num_attention_heads from 1 to 262144"),
    (("text_config", "num_key_value_heads"), -4, "num_key_value_heads from 1 to 262144"),
    (("text_config", "head_dim"), 10**9, "head_dim from 1 to 262144"),
    (("text_config", "vocab_size"), -1, "vocab_size from 1 to 4194304, got -1"),
    (("text_config", "vocab_size"), 10**10, "vocab_size from 1 to 4194304"),
    (("vision_config", "image_size"), 10**6, "image_size from 1 to 4096"),
    (("vision_config", "patch_size"), 0, "patch_size from 1 to 4096"),
    (("num_labels",), 10**9, "num_labels from 0 to 100000"),
    (("text_config", "num_local_experts"), 10**9, "num_local_experts from 0 to 1024"),
    (("image_grid_pinpoints",), [[336, 10**9]], "image_grid_pinpoints from 1 to 4096"),
    (("image_grid_pinpoints",), [[336, 336]] * 10**5, "entries in image_grid_pinpoints of its configuration"),
    (("layer_types",), ["full"] * 10**5, "entries in layer_types of its configuration"),
]


@pytest.mark.parametrize(("keys", "value", "said"), TOO_MUCH, ids=lambda part: str(part)[:40])
def test_number_that_no_model_has_is_refused_before_anything_is_built(
    copy: Path, keys: tuple[str, ...], value: Any, said: str
) -> None:
    edit(copy / "config.json", *keys, value=value)
    assert said in refusal(copy)


UNUSABLE: list[tuple[tuple[str, ...], Any]] = [
    (("dtype",), {}),
    (("dtype",), "float31"),
    (("dtype",), [1]),
    (("projector_hidden_act",), "swoosh"),
    (("projector_hidden_act",), {"a": 1}),
    (("text_config", "hidden_act"), "swoosh"),
    (("text_config", "pad_token_id"), 10**6),
    (("text_config", "pad_token_id"), -70),
    (("text_config", "num_attention_heads"), 7),
    (("text_config", "num_hidden_layers"), "8"),
    (("text_config", "num_hidden_layers"), None),
    (("text_config", "hidden_size"), 64),
    (("text_config", "vocab_size"), 10**6),
    (("text_config", "rope_parameters"), {"rope_type": "nothing"}),
    (("text_config",), 5),
    (("text_config",), []),
    (("vision_config",), "clip"),
    (("vision_config", "num_channels"), 0),
    (("vision_config", "num_attention_heads"), 7),
    (("vision_feature_layer",), {}),
    (("vision_feature_select_strategy",), 5),
    (("image_token_index",), -5),
    (("image_token_index",), 10**30),
    (("model_type",), 5),
    (("model_type",), []),
]


@pytest.mark.parametrize(("keys", "value"), UNUSABLE, ids=str)
def test_setting_that_makes_no_sense_is_an_error_of_the_model(copy: Path, keys: tuple[str, ...], value: Any) -> None:
    edit(copy / "config.json", *keys, value=value)
    start = time.process_time()
    with pytest.raises((ValueError, TypeError)) as caught:
        load(str(copy), device="cpu")
    assert str(caught.value).startswith("model ") or caught.traceback[-1].name == "locate"
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ((("text_config", "vocab_size"), -1), "vocab_size"),
        ((("dtype",), {}), "must have a configuration that can be used"),
        ((("projector_hidden_act",), "swoosh"), "KeyError: 'swoosh'"),
        ((("text_config", "pad_token_id"), 10**6), "must have a configuration that can be used"),
    ],
    ids=str,
)
def test_settings_that_were_other_errors(copy: Path, keys: Any, said: str) -> None:
    edit(copy / "config.json", *keys[0], value=keys[1])
    assert said in refusal(copy)


@pytest.mark.parametrize("content", ["", "{", "[]", "5", "[" * 100_000, '{"a": NaN', "1" * 5000, "\xff\xfe"])
def test_configuration_that_is_none_is_refused(copy: Path, content: str) -> None:
    (copy / "config.json").write_bytes(content.encode("latin-1"))
    assert "must have a configuration" in refusal(copy)


LONG: list[tuple[tuple[str, ...], Any]] = [
    (("text_config",), [[{"a": [1] * 3000}]]),
    (("text_config", "model_type"), "x" * 5000),
    (("model_type",), "x" * 5000),
    (("text_config", "rms_norm_eps"), False),
    (("tie_word_embeddings",), "a\0b"),
]


@pytest.mark.parametrize(("keys", "value"), LONG, ids=lambda part: str(part)[:40])
def test_refusal_is_a_line_of_bounded_length(copy: Path, keys: tuple[str, ...], value: Any) -> None:
    edit(copy / "config.json", *keys, value=value)
    said = refusal(copy)
    assert "\n" not in said
    assert len(said) < 1000


def test_weights_that_are_too_few_are_refused_before_memory_is_taken(copy: Path) -> None:
    edit(copy / "config.json", "text_config", "vocab_size", value=4_000_000)
    assert "must have weights for the 1,02" in refusal(copy)


JSON_FILES = ["config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"]
EXTRA_FILES = ["generation_config.json", "special_tokens_map.json", "added_tokens.json", "preprocessor_config.json"]
MORE_FILES = ["chat_template.jinja", "model.safetensors", "tokenizer.model", "model.safetensors.index.json"]


@pytest.mark.parametrize("name", [*JSON_FILES, *EXTRA_FILES, *MORE_FILES])
def test_pipe_in_a_checkpoint_is_refused_at_once(copy: Path, name: str) -> None:
    (copy / name).unlink(missing_ok=True)
    os.mkfifo(copy / name)
    assert f"{name}: must be a regular file, not a pipe" in refusal(copy)


@pytest.mark.parametrize("name", [*JSON_FILES, *EXTRA_FILES, "chat_template.jinja", "model.safetensors.index.json"])
def test_large_file_in_a_checkpoint_is_refused_before_it_is_read(copy: Path, name: str) -> None:
    with (copy / name).open("wb") as stream:
        stream.truncate(2**30)
    assert f"MiB in {name}, got 1,073,741,824 bytes" in refusal(copy)


def test_pipe_behind_a_link_is_refused(copy: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer.json").symlink_to(tmp_path / "pipe")
    assert "must be a regular file" in refusal(copy)


def test_links_to_files_are_followed(copy: Path, tmp_path: Path) -> None:
    """The hub's cache is made of them."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in copy.iterdir():
        (linked / path.name).symlink_to(path)
    (linked / "gone.json").symlink_to(tmp_path / "nowhere")
    load(str(linked), device="cpu")


@pytest.mark.parametrize("with_weights", [True, False])
def test_class_that_is_not_supported_is_said_before_what_is_missing(tmp_path: Path, with_weights: bool) -> None:
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**vision, "vocab_size": 90}
    PaliGemmaConfig(vision_config=vision, text_config=text).save_pretrained(tmp_path)
    if with_weights:
        (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(TypeError, match="model must be one of Llava"):
        find_source(str(tmp_path))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("image_processor", "size"), {"shortest_edge": 10**6}),
        (("image_processor", "size"), {"shortest_edge": 0}),
        (("image_processor", "size"), {"height": 10**6, "width": 10}),
        (("image_processor", "crop_size"), {"height": 10**6, "width": 10**6}),
        (("image_processor", "crop_size"), "large"),
        (("image_processor", "size"), 10**9),
        (("image_processor", "resample"), 99),
        (("image_processor", "image_mean"), "grey"),
        (("image_processor", "image_std"), [0]),
        (("image_processor",), 5),
        (("patch_size",), 10**9),
        (("patch_size",), "x"),
        (("num_additional_image_tokens",), 10**9),
    ],
    ids=str,
)
def test_processor_setting_that_makes_no_sense_is_refused(copy: Path, keys: tuple[str, ...], value: Any) -> None:
    edit(copy / "processor_config.json", *keys, value=value)
    assert "model " in refusal(copy)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("eos_token_id", "2", "eos_token_id is token ids, got '2'"),
        ("eos_token_id", {"a": 2}, "eos_token_id is token ids, got {'a': 2}"),
        ("pad_token_id", False, "pad_token_id is token ids, got False"),
        ("bos_token_id", 10**30, "bos_token_id is token ids, got"),
        ("suppress_tokens", [1, None], "suppress_tokens is token ids, got [1, None]"),
        ("output_hidden_states", "x", "output_hidden_states is True or False, got 'x'"),
        ("repetition_penalty", [1.1], "repetition_penalty is a number, got [1.1]"),
        ("max_length", "long", "max_length is an integer, got 'long'"),
    ],
)
def test_setting_of_generation_of_another_kind_is_refused(copy: Path, key: str, value: Any, said: str) -> None:
    edit(copy / "generation_config.json", key, value=value)
    assert said in refusal(copy)


def test_settings_of_generation_of_real_checkpoints_pass() -> None:
    settings: dict[str, Any] = {"eos_token_id": [151645, 151643], "temperature": 1e-6, "repetition_penalty": 1.05}
    settings |= {"top_k": 50, "top_p": None, "num_assistant_tokens_schedule": "constant", "pad_token_id": 32001}
    check_generation("real", settings | {"cache_implementation": "hybrid", "do_sample": True, "max_length": 4096})


def test_tokenizer_that_panics_is_refused(copy: Path) -> None:
    """tokenizers is written in Rust, whose panics are no `Exception`."""
    edit(copy / "tokenizer.json", "post_processor", "special_tokens", value={})
    assert "model must have a tokenizer that can be used, got one that fails: " in refusal(copy)


def test_real_configurations_pass() -> None:
    check_config("demo", json.loads((DEMO_FOLDER / "config.json").read_text()))
    text = {"num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 29568, "vocab_size": 152064}
    text |= {"rope_theta": 10**6, "max_position_embeddings": 2**20, "max_window_layers": 80, "head_dim": 128}
    vision = {"image_size": 384, "patch_size": 14, "num_hidden_layers": 27, "vision_feature_layer": -2}
    points = [[height * 384, width * 384] for height in range(1, 7) for width in range(1, 7)]
    check_config("large", {"text_config": text, "vision_config": vision, "image_grid_pinpoints": points})
