"""Prefixes in files: the same answers after loading, and clear errors for what does not belong."""

import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import vitcop_llava
from vitcop_llava import ImagePrefix
from vitcop_llava.prefix.sealed_file import write_sealed

Make = Callable[..., Tensor]
QUESTIONS = [[5, 6, 7, 8], [9], [10, 11]]
HOW: dict[str, Any] = {
    "max_new_tokens": 4,
    "do_sample": False,
    "output_logits": True,
    "return_dict_in_generate": True,
}


@pytest.fixture
def prefix(model: Any, prompt: Make, pictures: Make, budget: Any) -> ImagePrefix:
    return vitcop_llava.encode_image(model, prompt(3, "image", 2), pictures(), method=budget())


@pytest.fixture
def path(prefix: ImagePrefix, tmp_path: Path) -> Path:
    prefix.save(tmp_path / "image.safetensors")
    return tmp_path / "image.safetensors"


def rewrite(path: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], None]) -> None:
    """Changes tensors and content of a stored prefix."""
    with safe_open(path, framework="pt") as handle:
        content = json.loads(handle.metadata()["vitcop-image-prefix"])
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors, content)
    del content["sha256"]  # another one is written
    write_sealed(path, tensors, "vitcop-image-prefix", content)


@pytest.mark.parametrize("parts", [("image",), (3, "image", 4, "image", 2)], ids=str)
@pytest.mark.parametrize("settings", [{}, {"share": "1/3", "stage_one": False}, {"share": "1"}], ids=str)
def test_loaded_prefix_answers_bit_for_bit(
    model: Any, prompt: Make, pictures: Make, budget: Any, tmp_path: Path, parts: Any, settings: dict[str, Any]
) -> None:
    method, path = budget(**settings), tmp_path / "image.safetensors"
    with vitcop_llava.prune(model, method):
        prefix = vitcop_llava.encode_image(model, prompt(*parts), pictures(parts.count("image")))
        prefix.save(path)
        loaded = ImagePrefix.load(path, model)
        asked, again = (model.generate(**which.inputs(QUESTIONS), **HOW) for which in (prefix, loaded))
    assert torch.equal(asked.sequences, again.sequences)
    assert all(torch.equal(*pair) for pair in zip(asked.logits, again.logits, strict=True))
    assert loaded.report == prefix.report
    assert loaded.method == method
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_loaded_prefix_keeps_its_bookkeeping(
    model: Any, prefix: ImagePrefix, path: Path, budget: Any, tmp_path: Path
) -> None:
    loaded = ImagePrefix.load(path, model, budget())
    caches: list[Any] = [prefix.cache(), loaded.cache()]
    for one, other in zip(*(cache.layers for cache in caches), strict=True):
        for name in ("covered", "entry_dropped", "group", "has_padding", "text_tail"):
            assert getattr(one, name) == getattr(other, name)
        assert torch.equal(one.columns, other.columns)
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_rows_of_files_have_the_form_of_version_3(path: Path) -> None:
    with safe_open(path, framework="pt") as handle:
        content = json.loads(handle.metadata()["vitcop-image-prefix"])
    row = content["report"]["row"]
    assert (content["version"], set(content["report"])) == (3, {"row", "distance_ratio", "note", "cutoff_distance"})
    assert set(row) == {"images", "plan", "text_tokens", "newlines", "newlines_kept"}
    assert set(row["plan"]) == {"num_layers", "units", "vision", "decoder"}
    cut = row["plan"]["decoder"][0]
    assert set(cut) == {"layer", "keep", "stage", "reindex_positions", "recycled", "pack_positions"}
    assert cut["stage"] == "co_prune"


def test_file_may_be_replaced_while_its_prefix_is_in_use(
    model: Any, prefix: ImagePrefix, path: Path, budget: Any
) -> None:
    loaded = ImagePrefix.load(path, model, budget())
    prefix.save(path)
    path.write_bytes(b"")
    with vitcop_llava.prune(model, budget()):
        outputs = [model.generate(**which.inputs(QUESTIONS), **HOW).sequences for which in (prefix, loaded)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_stored_as_it_is(
    model: Any, prompt: Make, pictures: Make, budget: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    half, path = copy.deepcopy(model).to(dtype), tmp_path / "image.safetensors"
    vitcop_llava.encode_image(half, prompt(3, "image"), pictures().to(dtype), method=budget()).save(path)
    cache: Any = ImagePrefix.load(path, half, budget()).cache()
    assert {layer.keys.dtype for layer in cache.layers} == {dtype}
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=f"dtype {name} instead of float32"):
        ImagePrefix.load(path, model, budget())


def test_other_method_is_refused(model: Any, path: Path, budget: Any) -> None:
    with pytest.raises(
        ValueError, match=r"path .* made under this model, method and dtype, got method .* instead of ViTCoP"
    ):
        ImagePrefix.load(path, model, budget("1/3"))
    with (
        vitcop_llava.prune(model, budget("1/3")),
        pytest.raises(ValueError, match=r"method .*Fraction\(1, 9\).* instead of .*Fraction\(1, 3\)"),
    ):
        ImagePrefix.load(path, model)
    with pytest.raises(ValueError, match="method must be given where the model is not being pruned"):
        ImagePrefix.load(path, model)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"kind": "qwen2"}, 'config.text_config.model_type "llama" instead of "qwen2"'),
        ({"kv_heads": 4}, "config.text_config.num_key_value_heads 2 instead of 4"),
        ({"seed": 1}, "got weights of another checkpoint"),
    ],
    ids=["family", "heads", "weights"],
)
def test_other_model_is_refused(
    build: Callable[..., Any], path: Path, budget: Any, other: dict[str, Any], difference: str
) -> None:
    with pytest.raises(ValueError, match="must be made under this model, method and dtype, got") as caught:
        ImagePrefix.load(path, build(**other), budget())
    assert difference in str(caught.value)


def test_other_attention_backend_is_the_same_model(model: Any, path: Path, budget: Any) -> None:
    other = copy.deepcopy(model)
    other.set_attn_implementation("eager")
    ImagePrefix.load(path, other, budget())


def test_missing_file_is_named(model: Any, budget: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"path must be an existing file, got .*nowhere"):
        ImagePrefix.load(tmp_path / "nowhere", model, budget())
    with pytest.raises(ValueError, match="must be a whole safetensors file"):
        ImagePrefix.load(tmp_path, model, budget())


def test_folder_that_is_not_there_is_named(prefix: ImagePrefix, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        prefix.save(tmp_path / "nowhere" / "image.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 100, 3000, -1])
def test_truncated_file_is_refused(model: Any, path: Path, budget: Any, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"path .* must be a whole safetensors file"):
        ImagePrefix.load(path, model, budget())


def test_foreign_file_is_refused(model: Any, path: Path, budget: Any) -> None:
    for content in (b"a picture", struct.pack("<Q", 1 << 60) + b"{}", struct.pack("<Q", 2) + b"[]"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="must be a whole safetensors file"):
            ImagePrefix.load(path, model, budget())
    save_file({"weight": torch.zeros(3)}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"whose metadata is that of a vitcop-image-prefix, got \['format'\]"):
        ImagePrefix.load(path, model, budget())
    for text in ("no JSON", "[]", "[" * 100_000, '{"version": 99}', '{"version": true}', '{"version": 3.0}'):
        save_file({"weight": torch.zeros(3)}, path, {"vitcop-image-prefix": text})
        with pytest.raises(ValueError, match=r"version is 3, got (None|99|True|3.0)"):
            ImagePrefix.load(path, model, budget())
    save_file({"weight": torch.zeros(3)}, path, {"vitcop-image-prefix": '{"version": 3, "identity": 1}'})
    with pytest.raises(ValueError, match="whose metadata is JSON with identity, groups, report"):
        ImagePrefix.load(path, model, budget())


def test_file_of_an_older_version_is_refused_with_the_remedy(model: Any, path: Path, budget: Any) -> None:
    for version in (0, 1, 2):
        save_file({"weight": torch.zeros(3)}, path, {"vitcop-image-prefix": json.dumps({"version": version})})
        with pytest.raises(ValueError, match=f"version is 3, got {version}; make the prefix again with encode_i"):
            ImagePrefix.load(path, model, budget())


CHANGES: dict[str, tuple[Callable[[dict[str, Tensor], dict[str, Any]], Any], str]] = {
    "no-keys": (lambda t, c: t.pop("keys.3"), r"keys\.3 is there"),
    "heads": (lambda t, c: t.update({"keys.0": t["keys.0"][:1].contiguous()}), r"keys\.0 is F32 of shape"),
    "slots": (
        lambda t, c: t.update({"values.7": t["values.7"][:, 1:].contiguous()}),
        r"values\.7 is F32 of shape",
    ),
    "dtype": (lambda t, c: t.update({"keys.1": t["keys.1"].half()}), r"keys\.1 is F32 of shape .* got F16"),
    "ranks": (lambda t, c: t.update({"input_ids": t["input_ids"][None]}), "input_ids is I64 of shape"),
    "more": (lambda t, c: t.update({"extra": torch.zeros(1)}), r"whose list of tensors is complete, got \['extra'\]"),
    "token": (lambda t, c: t["input_ids"].__setitem__(0, 1 << 40), "input_ids is ids from 0 to 99"),
    "negative": (lambda t, c: t["input_ids"].__setitem__(0, -1), "input_ids is ids from 0 to 99"),
    "no-image": (lambda t, c: t["input_ids"].fill_(5), "input_ids is"),
    "outside": (lambda t, c: t["columns.1"].__setitem__(-1, 10**9), r"columns\.1 is ascending, below 150"),
    "below": (lambda t, c: t["columns.0"].__setitem__(0, -5), r"columns\.0 is ascending"),
    "order": (lambda t, c: t["columns.2"].copy_(t["columns.2"].flip(0)), r"columns\.2 is ascending"),
    "text": (lambda t, c: t["columns.0"].add_(-1).clamp_(min=0), r"columns\.0 is ascending"),
    "few-groups": (lambda t, c: c["groups"].pop(), "groups is 8 ascending numbers from 0"),
    "odd-groups": (lambda t, c: c["groups"].__setitem__(0, 7), "groups is 8 ascending numbers from 0"),
    "bool-groups": (lambda t, c: c["groups"].__setitem__(0, False), "groups is 8 ascending numbers from 0"),
    "report": (lambda t, c: c["report"].pop("row"), "whose report is"),
    "row": (lambda t, c: c["report"]["row"].update(other=1), "whose report is"),
    "images": (lambda t, c: c["report"]["row"].update(images="many"), "whose report is"),
    "plan": (lambda t, c: c["report"]["row"]["plan"].update(units=[-1]), "whose report is"),
    "stage": (lambda t, c: c["report"]["row"]["plan"]["decoder"][0].update(stage="x"), "whose report is"),
    "ratio": (lambda t, c: c["report"].update(distance_ratio="far"), "whose report is"),
    "whole-ratio": (lambda t, c: c["report"].update(distance_ratio=1), "whose report is"),
    "count": (lambda t, c: c["report"]["row"].update(images=2**40), "whose report is"),
    "keep": (lambda t, c: c["report"]["row"]["plan"]["decoder"][0].update(keep=2**40), "whose report is"),
    "layers": (lambda t, c: c["report"]["row"]["plan"].update(num_layers=2**40), "whose report is"),
    "note": (lambda t, c: c["report"].update(note=[1]), "whose note is a text"),
    "class": (
        lambda t, c: c["identity"].update(model="Other"),
        "model Other instead of LlavaForConditionalGeneration",
    ),
    "no-identity": (lambda t, c: c["identity"].clear(), "model None instead of LlavaForConditionalGeneration"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_file_that_does_not_add_up_is_refused(model: Any, path: Path, budget: Any, change: str) -> None:
    make, message = CHANGES[change]
    rewrite(path, make)
    with pytest.raises(ValueError, match=f"path .*{message}"):
        ImagePrefix.load(path, model, budget())


def test_settings_that_this_version_does_not_know_decide_nothing(model: Any, path: Path, budget: Any) -> None:
    rewrite(path, lambda tensors, content: content["identity"].update({"config.novelty": "true"}))
    ImagePrefix.load(path, model, budget())
