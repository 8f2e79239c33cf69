"""Loading a model: what is missing or does not fit is named, and nothing but safetensors is read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from vitcop_llava.tools.demo.build import demo_processor, initialised_model, save_demo
from vitcop_llava.tools.model import loading
from vitcop_llava.tools.model.loading import HubError, find_device, find_source, load
from vitcop_llava.tools.model.processors import ModelError

GRID = 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    save_demo(initialised_model(GRID), demo_processor(GRID), folder)
    return folder


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_load_gives_a_model_that_can_be_pruned(checkpoint: Path) -> None:
    loaded = load(str(checkpoint), device="cpu")
    assert loaded.parts.visual_tokens == GRID * GRID
    assert (loaded.device, loaded.dtype, loaded.is_demo) == (torch.device("cpu"), torch.float32, True)
    assert not loaded.model.training


def test_load_converts_to_the_dtype(checkpoint: Path) -> None:
    assert load(str(checkpoint), device="cpu", dtype="bfloat16").dtype == torch.bfloat16


def test_load_runs_half_precision_checkpoints_as_bfloat16_on_a_cpu(copy: Path) -> None:
    edit(copy / "config.json", lambda config: config.update(dtype="float16"))
    assert load(str(copy), device="cpu").dtype == torch.bfloat16


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_load_depends_on_no_default(checkpoint: Path, device: str, dtype: torch.dtype) -> None:
    wanted, before = load(str(checkpoint), device="cpu").model, torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            found = load(str(checkpoint), device="cpu").model
    finally:
        torch.set_default_dtype(before)
    pairs = zip([*found.parameters(), *found.buffers()], [*wanted.parameters(), *wanted.buffers()], strict=True)
    assert all(mine.dtype is theirs.dtype and torch.equal(mine, theirs) for mine, theirs in pairs)


def test_load_reads_sharded_weights(checkpoint: Path, tmp_path: Path) -> None:
    model = load(str(checkpoint), device="cpu").model
    demo_processor(GRID).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, max_shard_size="4MB")
    assert (tmp_path / loading.WEIGHTS_INDEX).exists()
    again = load(str(tmp_path), device="cpu").model
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(ModelError, match="without model-00002"):
        load(str(tmp_path))


def test_load_names_a_shard_outside_the_folder(copy: Path) -> None:
    (copy / loading.WEIGHTS).unlink()
    (copy / loading.WEIGHTS_INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": "../other.safetensors"}}))
    with pytest.raises(ModelError, match="safetensors files of its folder"):
        load(str(copy))


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("config.json", "without config.json"),
        ("model.safetensors", r"without weights \(model.safetensors\)"),
        ("processor_config.json", "without an image processor"),
        ("tokenizer.json", "without a tokenizer"),
    ],
)
def test_load_names_what_is_missing(copy: Path, gone: str, said: str) -> None:
    (copy / gone).unlink()
    with pytest.raises(ModelError, match=said):
        load(str(copy))


def test_load_never_reads_a_pickle(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ModelError, match=r"pytorch_model.bin, a pickle"):
        load(str(copy))


def test_load_never_runs_a_checkpoints_code(copy: Path) -> None:
    (copy / "evil.py").write_text(f"open({str(copy / 'ran')!r}, 'w')\nclass Evil: pass\n")
    auto = {"AutoConfig": "evil.Evil", "AutoModelForImageTextToText": "evil.Evil"}
    edit(copy / "config.json", lambda config: config.update(model_type="evil", auto_map=auto))
    with pytest.raises(ModelError, match="must have a configuration that can be used, got that of"):
        load(str(copy))
    assert not (copy / "ran").exists()


def test_load_refuses_damaged_weights(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"must have weights for the"):
        load(str(copy))


def test_load_refuses_weights_with_gaps(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    name = next(name for name in weights if "k_proj" in name)
    del weights[name]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="got none for 1 tensors"):
        load(str(copy))


def test_load_refuses_damaged_configurations(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelError, match="must have a configuration that can be used, got that of"):
        load(str(copy))


def test_load_refuses_an_image_processor_of_another_size(copy: Path) -> None:
    demo_processor(GRID + 1).save_pretrained(copy)
    with pytest.raises(ModelError, match=r"gives images of 3 x 56 x 56 .* got 3 x 70 x 70"):
        load(str(copy))


def test_load_refuses_a_tokenizer_of_another_model(copy: Path) -> None:
    processor = demo_processor(GRID)
    processor.tokenizer.add_tokens([f"word{k}" for k in range(9)])
    processor.save_pretrained(copy)
    with pytest.raises(ModelError, match=r"must have a tokenizer of at most its"):
        load(str(copy))


def test_load_refuses_another_placeholder(copy: Path) -> None:
    edit(copy / "config.json", lambda config: config.update(image_token_index=7))
    with pytest.raises(ModelError, match="must have a processor that gives 16 placeholders an image"):
        load(str(copy))


def test_load_gives_the_adapters_error_for_another_family(checkpoint: Path, tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    demo_processor(GRID).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"model must be one of LlavaForConditionalGeneration.* got a LlamaModel"):
        load(str(tmp_path))


def test_load_refuses_a_decoder_without_projections_before_reading_weights(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"not read")
    edit(copy / "config.json", lambda config: config.update(text_config={"model_type": "phi3", "pad_token_id": 0}))
    with pytest.raises(ValueError, match=r"self_attn.q_proj .* got a Phi3Model"):
        load(str(copy))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("./nowhere", "model must be an existing folder, or a hub id"),
        ("/nowhere/at/all", "model must be an existing folder, or a hub id"),
        ("a/b/c", "model must be an existing folder, or a hub id"),
        ("", "model must be an existing folder, or a hub id"),
    ],
)
def test_find_source_refuses_what_is_no_folder_and_no_id(source: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=said):
        find_source(source)


def test_find_source_takes_ids_as_they_are() -> None:
    assert find_source("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"


def test_find_source_refuses_a_file(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="got the file"):
        find_source(str(checkpoint / "model.safetensors"))


def test_find_source_says_where_the_demo_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "DEMO_FOLDER", tmp_path)
    with pytest.raises(ModelError, match="where the demo weights are not installed"):
        find_source(None)


def test_load_without_a_source_is_the_demo(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "DEMO_FOLDER", checkpoint)
    loaded = load(device="cpu")
    assert (loaded.source, loaded.is_demo) == (str(checkpoint), True)


def test_load_says_that_the_hub_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"a hub id while you are online, got 'vitcop/no-such-model'"):
        load("vitcop/no-such-model")


@pytest.mark.parametrize("device", ["gpu", "cuda:999", "meta", "cpu:x"])
def test_find_device_refuses_what_is_not_there(device: str) -> None:
    with pytest.raises(ValueError, match="device must be "):
        find_device(device)


def test_load_refuses_a_dtype_that_is_none(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="dtype must be auto, float32, float16, bfloat16, got 'int8'"):
        load(str(checkpoint), dtype="int8")
