"""The pruning path makes the host wait for the device once a prefill, and once for the mask of each later call."""

import ast
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

import vitcop_llava
from vitcop_llava.hooks import layout

Make = Callable[..., Tensor]
SOURCE = Path(vitcop_llava.__file__).parent
CALLS = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__", "__len__"}
CALLS |= {"nonzero", "argwhere", "masked_select", "unique", "equal", "allclose", "bincount", "tensor", "as_tensor"}
OPERATORS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero", "bincount"}


def caller() -> str | None:
    """The innermost function of vitcop on the stack; None where transformers is further in, or there is none."""
    frame = sys._getframe(2)
    while frame is not None:
        parts = Path(frame.f_code.co_filename).parts
        if "transformers" in parts:
            return None
        if {"vitcop_llava", "vitcop_core"} & set(parts):
            return frame.f_code.co_name
        frame = frame.f_back  # type: ignore[assignment]
    return None


def by_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, Tensor) and part.dtype is torch.bool for part in parts)


class Functions(TorchFunctionMode):
    """Notes Python calls that read values, or make tensors of host numbers."""

    def __init__(self, found: list[tuple[str, str]]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        waits = (name in CALLS and name != "__len__") or (name in ("__getitem__", "__setitem__") and by_mask(args[1]))
        if waits and (place := caller()) is not None:
            self.found.append((place, name))
        return function(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    """Notes operators whose result's size, or whose caller, needs values."""

    def __init__(self, found: list[tuple[str, str]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.rpartition("::")[2]
        masks = name in ("index", "index_put", "index_put_") and by_mask(tuple(args[1]))
        if (name in OPERATORS or masks) and (place := caller()) is not None:
            self.found.append((place, name))
        return function(*args, **(kwargs or {}))


def waits(model: Any, method: Any, given: dict[str, Any]) -> list[tuple[str, str]]:
    """Where a prefill and two decoding steps wait for the device."""
    found: list[tuple[str, str]] = []
    with vitcop_llava.prune(model, method), Functions(found), Operators(found):
        cache = DynamicCache(config=model.config)
        model(**given, past_key_values=cache, use_cache=True)
        rows, mask = given["input_ids"].shape[0], given.get("attention_mask")
        for _ in range(2):
            step = given["input_ids"].new_ones(rows, 1)
            if mask is not None:
                mask = torch.cat([mask, step], dim=1)
            model(input_ids=step, attention_mask=mask, past_key_values=cache)
    return found


def reads_of(found: list[tuple[str, str]]) -> Counter[str]:
    """How often each function reads. `on_device` copies from pinned memory, and does not wait."""
    return Counter(place for place, name in found if place != "on_device" and name not in OPERATORS)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"compat": "official"},
    {"saliency": "attention"},
    {"clustering": False},
    {"deep_positions": "reindexed"},
    {"vic_features": "vision_hidden"},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("parts", [(3, "image", 8), (3, "image", 2, "image", 8)], ids=["one-image", "two-images"])
@pytest.mark.parametrize("rows", [1, 2])
def test_uniform_batch_reads_once(
    model: Any,
    prompt: Make,
    pictures: Make,
    budget: Any,
    rows: int,
    parts: tuple[Any, ...],
    masked: bool,
    settings: dict[str, Any],
) -> None:
    ids = prompt(*parts).expand(rows, -1).contiguous()
    given = {"input_ids": ids, "pixel_values": pictures(rows * parts.count("image"))}
    if masked:
        given["attention_mask"] = torch.ones_like(ids)
    found = waits(model, budget(**settings), given)
    # The prompt, and the masks of two decoding steps, as transformers reads them itself.
    assert reads_of(found) == {"_read": 1} | ({"without_padding": 2} if masked else {})


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_ragged_batch_reads_once(
    model: Any, prompt: Make, pictures: Make, pad: Any, budget: Any, settings: dict[str, Any]
) -> None:
    batch = pad([prompt(2, "image", 8), prompt("image", 3, "image", 4, seed=1), prompt(20, seed=2)])
    found = waits(model, budget(**settings), {**batch, "pixel_values": pictures(3)})
    assert reads_of(found) == {"_read": 1, "without_padding": 2}


BASELINES = [
    vitcop_llava.FastV(retained_tokens=48),
    vitcop_llava.PyramidDrop(retained_tokens=48),
    vitcop_llava.SparseVLM(retained_tokens=48),
    vitcop_llava.VisionZip(retained_tokens=48),
    vitcop_llava.DivPrune(retained_tokens=48),
    vitcop_llava.VisPruner(retained_tokens=48),
    vitcop_llava.EarlyViTCoP(retained_tokens=48),
    vitcop_llava.EarlyViTCoP(retained_tokens=48, ranking="layer0"),
]


@pytest.mark.parametrize("method", BASELINES, ids=lambda method: type(method).__name__)
def test_baselines_wait_where_vitcop_does(model: Any, prompt: Make, pictures: Make, pad: Any, method: Any) -> None:
    ids = prompt(3, "image", 2, "image", 8).expand(2, -1).contiguous()
    assert reads_of(waits(model, method, {"input_ids": ids, "pixel_values": pictures(4)})) == {"_read": 1}
    batch = pad([prompt(2, "image", 8), prompt("image", 3, "image", 4, seed=1), prompt(20, seed=2)])
    found = waits(model, method, {**batch, "pixel_values": pictures(3)})
    assert reads_of(found) == {"_read": 1, "without_padding": 2}


def test_tower_without_cls_waits_where_others_do(
    build: Any, build_next: Any, prompt: Make, pictures: Make, pad: Any, next_inputs: Any, budget: Any
) -> None:
    model, tiled = build("qwen2", tower="siglip"), build_next("qwen2", tower="siglip")
    batch = pad([prompt(2, "image", 8), prompt("image", 3, "image", 4, seed=1), prompt(20, seed=2)])
    for method in (budget(), vitcop_llava.VisionZip(retained_tokens=24), vitcop_llava.DivPrune(retained_tokens=24)):
        found = waits(model, method, {**batch, "pixel_values": pictures(3)})
        assert reads_of(found) == {"_read": 1, "without_padding": 2}
        found = waits(tiled, method, next_inputs(NEXT_BATCHES["ragged"]))
        assert reads_of(found) == {"_read": 1, "without_padding": 2, "read_sizes": 1}


NEXT_BATCHES: dict[str, list[list[Any]]] = {
    "one-image": [[2, (96, 96), 3]],
    "one-row": [[2, (131, 77), 3, (10, 90), 2]],
    "same-size": [[2, (131, 77), 3], [1, (131, 77), 4]],
    "ragged": [[2, (131, 77), 3], [(10, 90), 2, (96, 96), 3], [4]],
}


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
@pytest.mark.parametrize("as_list", [True, False], ids=["list", "tensor"])
@pytest.mark.parametrize("batch", NEXT_BATCHES)
def test_tiles_read_sizes_alone(
    next_model: Any, next_inputs: Any, budget: Any, batch: str, as_list: bool, settings: dict[str, Any]
) -> None:
    given = next_inputs(NEXT_BATCHES[batch])
    if as_list:
        given["image_sizes"] = given["image_sizes"].tolist()
    found = waits(next_model, budget("1/6", **settings), given)
    assert reads_of(found) == {"_read": 1, "without_padding": 2} | ({} if as_list else {"read_sizes": 1})


@pytest.mark.parametrize("how", ["item", "tolist", "bool", "mask"])
def test_detector_notices_a_wait(
    model: Any, prompt: Make, pictures: Make, budget: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def after_cut(run: Any, counts: list[int]) -> int:
        mask = run.segment.columns > 3
        found: dict[str, Callable[[], Any]] = {
            "item": mask.sum().item,
            "tolist": mask.tolist,
            "bool": lambda: bool(mask.any()),
            "mask": lambda: run.segment.columns[mask],
        }
        found[how]()
        return original(run, counts)

    original = layout.after_cut
    code = after_cut.__code__.replace(co_filename=layout.__file__)
    inner = [c.replace(co_filename=layout.__file__) if hasattr(c, "co_filename") else c for c in code.co_consts]
    after_cut.__code__ = code.replace(co_consts=tuple(inner))
    monkeypatch.setattr(layout, "after_cut", after_cut)
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    assert waits(model, budget(), given)


ON_THE_WAY = [
    *(SOURCE / "families" / f"{name}.py" for name in ("clips", "grids", "image_sizes")),
    *sorted((SOURCE / "sequence").glob("*.py")),
    *sorted((SOURCE / "hooks").glob("*.py")),
]
ALLOWED = {
    ("reading", "_read", "numpy"),  # placeholders, mask and positions of a prompt with images
    ("image_sizes", "read_sizes", "tolist"),  # image_sizes, where they are a tensor
    ("image_sizes", "read_shared", "tolist"),  # likewise batch_num_images, which transformers reads number by number
    ("grids", "read_grids", "tolist"),  # grids, where they were not read with the prompt
    ("checks", "check_text_only", "item"),  # placeholders, of a prompt without images
    ("clips", "check_frames", "item"),  # placeholders, of a prompt with clips
    ("cache", "_uncover", "item"),  # rolling back
}


def test_source_reads_from_the_device_at_one_place_only() -> None:
    found = set()
    for path in ON_THE_WAY:
        tree = ast.parse(path.read_text())
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and node.attr in CALLS - {"equal", "tensor", "unique"}:
                    found.add((path.stem, function.name, node.attr))
    assert found == ALLOWED


def test_source_loops_over_rows_layers_and_images_only() -> None:
    iterated = set()
    for path in ON_THE_WAY:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.For | ast.comprehension):
                iterated |= {part.id for part in ast.walk(node.iter) if isinstance(part, ast.Name)}
    assert not iterated & {"tokens", "hidden", "embeds", "columns", "index", "labels", "patches", "kept", "where"}
