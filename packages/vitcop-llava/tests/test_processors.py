"""Processors of checkpoints: what they leave out is filled in from the model, and what does not fit it is named."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import SiglipVisionConfig, SiglipVisionModel

from vitcop_llava.tools.model.loading import load
from vitcop_llava.tools.model.processors import ModelError, read_processor

SETTINGS = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to change."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("missing", [[name] for name in SETTINGS] + [[*SETTINGS]], ids=[*SETTINGS, "all"])
@pytest.mark.parametrize("how", ["absent", "null"])
def test_load_fills_in_what_old_processors_leave_out(copy: Path, missing: list[str], how: str) -> None:
    def change(config: dict[str, Any]) -> None:
        for name in missing:
            del config[name]
            if how == "null":
                config[name] = None

    edit(copy / "processor_config.json", change)
    processor = load(str(copy), device="cpu").processor
    assert {name: getattr(processor, name) for name in SETTINGS} == SETTINGS


def test_load_fills_in_a_processor_without_a_file_of_its_own(copy: Path) -> None:
    config = json.loads((copy / "processor_config.json").read_text())
    (copy / "processor_config.json").unlink()
    (copy / "preprocessor_config.json").write_text(
        json.dumps(config["image_processor"] | {"processor_class": "LlavaProcessor"})
    )
    processor = load(str(copy), device="cpu").processor
    assert {name: getattr(processor, name) for name in SETTINGS} == SETTINGS


def test_load_fills_in_a_processor_of_tiles(next_model: Any, next_processor: Any, tmp_path: Path) -> None:
    next_model.save_pretrained(tmp_path)
    next_processor.save_pretrained(tmp_path)
    edit(tmp_path / "processor_config.json", lambda config: [config.pop(name) for name in SETTINGS])
    processor = load(str(tmp_path), device="cpu").processor
    assert {name: getattr(processor, name) for name in SETTINGS} == SETTINGS | {"patch_size": 8}


def test_tower_without_cls_adds_no_token(copy: Path) -> None:
    parts = load(str(copy), device="cpu").parts
    tower = SiglipVisionModel(
        SiglipVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    edit(copy / "processor_config.json", lambda config: config.pop("num_additional_image_tokens"))
    processor = read_processor(str(copy), replace(parts, vision_tower=tower))
    assert processor.num_additional_image_tokens == 0


@pytest.mark.parametrize(
    ("setting", "value", "count"),
    [
        ("patch_size", 28, 36),
        ("vision_feature_select_strategy", "full", 145),
        ("num_additional_image_tokens", 0, 143),
        ("num_additional_image_tokens", 2, 145),
    ],
)
def test_load_names_the_setting_that_is_wrong(copy: Path, setting: str, value: Any, count: int) -> None:
    edit(copy / "processor_config.json", lambda config: config.update({setting: value}))
    said = f"got {count}; its {setting} must be {SETTINGS[setting]!r}, got {value!r}"
    with pytest.raises(ModelError, match=re.escape(said)):
        load(str(copy), device="cpu")


def test_load_names_a_tokenizer_without_the_image_token(copy: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        words = content["model"]["vocab"]
        words["<picture>"] = words.pop("<image>")
        for token in content["added_tokens"]:
            token["content"] = token["content"].replace("<image>", "<picture>")

    edit(copy / "tokenizer.json", rename)
    edit(copy / "tokenizer_config.json", lambda config: config.pop("image_token"))
    with pytest.raises(ModelError, match=r"tokenizer must have '<image>' as token 4 .*, and does not know it"):
        load(str(copy), device="cpu")


def test_load_names_an_image_token_with_another_id(copy: Path) -> None:
    edit(copy / "config.json", lambda config: config.update(image_token_index=7))
    with pytest.raises(ModelError, match=r"tokenizer must have '<image>' as token 7 .*, and has it as 4"):
        load(str(copy), device="cpu")
