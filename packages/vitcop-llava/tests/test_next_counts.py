"""LLaVA-NeXT: how many tokens an image has and keeps, known from its size, as transformers packs it and as it runs."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlavaNextProcessor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

import vitcop_llava
from vitcop_llava import Tiling, ViTCoP, tile_image

Inputs = Callable[..., dict[str, Any]]
RELEASED = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
GRIDS = {"released": (RELEASED, 336, 14), "small": ([[48, 96], [96, 48], [96, 96], [144, 48], [48, 144]], 48, 8)}


def sizes(count: int) -> list[tuple[int, int]]:
    """Heights and widths: of photographs, of anything, and of every kind of edge."""
    rng = np.random.default_rng(0)
    found = [
        (1, 1),
        (2, 2),
        (1, 500),
        (500, 1),
        (336, 336),
        (672, 672),
        (672, 671),
        (671, 672),
        (1008, 336),
        (337, 1009),
    ]
    found += [(48, 96), (47, 96), (480, 640), (427, 640), (3000, 2000), (20000, 20000), (7, 19999)]
    while len(found) < count:
        scale = 2 ** rng.uniform(1, 12)
        found.append((max(1, int(scale * 2 ** rng.uniform(-4, 4))), max(1, int(scale))))
    return found


def transformers_packs(model: Any, processor: Any, height: int, width: int, grid: tuple[Any, int, int]) -> list[int]:
    """What stands at every placeholder: the number of a patch over all units, or -1 for a newline."""
    pinpoints, tile, patch = grid
    units, side = image_size_to_num_patches([height, width], pinpoints, tile), tile // patch
    numbers = torch.arange(units * side * side, dtype=torch.float32).view(units, side * side, 1)
    packed, lengths = model.pack_image_features(
        [numbers], [[height, width]], "default", image_newline=torch.tensor([-1.0])
    )
    assert lengths.tolist() == [processor._get_number_of_features(height, width, tile, tile) - 1]
    found: list[int] = packed[0][:, 0].int().tolist()
    return found


@pytest.mark.parametrize("name", GRIDS)
def test_tiling_equals_transformers_packing_for_500_sizes(
    next_model: Any, next_processor: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = pinpoints, tile, patch = GRIDS[name]
    for setting, value in (("image_grid_pinpoints", pinpoints),):
        monkeypatch.setattr(next_model.model.config, setting, value)
    monkeypatch.setattr(next_model.model.config.vision_config, "image_size", tile)
    monkeypatch.setattr(next_model.model.config.vision_config, "patch_size", patch)
    monkeypatch.setattr(next_processor.image_processor, "image_grid_pinpoints", pinpoints)
    monkeypatch.setattr(next_processor, "patch_size", patch)
    for height, width in sizes(500):
        tiling = tile_image(height, width, pinpoints=pinpoints, tile_size=tile, patch_size=patch)
        wanted = transformers_packs(next_model.model, next_processor, height, width, grid)
        assert tiling.placeholders == len(wanted), (height, width)
        assert [place for place, number in enumerate(wanted) if number < 0] == list(tiling.newline_places)
        patches = sorted(number for number in wanted if number >= 0)
        flat = np.array([tiling.mask(unit) for unit in range(len(tiling.boxes))]).flatten()
        assert np.flatnonzero(flat).tolist() == patches, (height, width)
        assert tiling.tokens == len(patches)
        assert [int(np.sum(tiling.mask(unit))) for unit in range(len(tiling.boxes))] == list(tiling.counts)


@pytest.mark.parametrize("keep_newline", [False, True])
def test_counts_from_size_equal_what_runs(
    next_model: Any, next_processor: Any, next_inputs: Inputs, budget: Any, keep_newline: bool
) -> None:
    rng = np.random.default_rng(1)
    method, seen = budget("1/6"), set()
    for width, height in [(96, 96), (10, 90), (300, 31), *rng.integers(2, 160, (20, 2)).tolist()]:
        tiling = tile_image(height, width, pinpoints=GRIDS["small"][0], tile_size=48, patch_size=8)
        plan = method.plan(8, tiling.units)
        inputs = next_inputs([[2, (width, height), 3]])
        with vitcop_llava.prune(next_model, method, keep_newline=keep_newline) as pruner:
            cache = next_model(**inputs).past_key_values
            (row,), survivors = pruner.report.rows, pruner.survivors()
        has_columns = tiling.window[3] > tiling.window[2]
        stay = tiling.newlines if keep_newline and has_columns else 0
        assert row.plan == plan
        assert (row.newlines, row.newlines_kept) == (tiling.newlines, stay)
        text = inputs["input_ids"].shape[1] - tiling.placeholders
        assert row.text_tokens == text
        assert [layer.keys.shape[2] for layer in cache.layers] == [n + text + stay for n in plan.tokens_per_layer]
        assert [len(stage.patches) for stage in survivors.stages] == [
            plan.entry_tokens,
            *[c.keep for c in plan.decoder],
        ]
        assert int((survivors.clusters >= 0).sum()) == plan.entry_tokens
        seen.add(tiling)
    assert len(seen) > 5


@pytest.mark.parametrize(("retained", "counts"), [(320, (172, 386, 77)), (160, (144, 167, 33))])
def test_nominal_counts_are_the_papers(retained: int, counts: tuple[int, int, int]) -> None:
    tiling = tile_image(672, 672, pinpoints=RELEASED, tile_size=336, patch_size=14)
    assert (tiling.units, tiling.tokens, tiling.newlines) == ((576,) * 5, 2880, 48)
    plan: Any = ViTCoP(retained_tokens=retained).plan(32, tiling.units)
    assert plan.vision.keep == (counts[0],) * 5
    assert [cut.keep for cut in plan.decoder] == [*counts[1:]]


@pytest.mark.parametrize(("height", "width", "tokens"), [(480, 640, 2340), (427, 640, 2144)])
def test_photographs_have_as_many_placeholders_as_the_released_model(height: int, width: int, tokens: int) -> None:
    tiling = tile_image(height, width, pinpoints=RELEASED, tile_size=336, patch_size=14)
    assert tiling.placeholders == tokens


def test_tile_of_padding_alone_is_no_unit() -> None:
    tiling = tile_image(200, 9, pinpoints=[[96, 48]], tile_size=48, patch_size=8)
    assert tiling == Tiling((6, 6), (2, 1), (0, 12, 3, 3))
    assert (tiling.counts, tiling.units, tiling.newlines) == ((36, 0, 0), (36,), 12)
    strip = tile_image(5, 40, pinpoints=[[96, 96]], tile_size=48, patch_size=8)
    assert strip.counts == (36, 6, 6, 6, 6)


@pytest.mark.parametrize(
    ("height", "width", "pinpoints", "message"),
    [
        (0, 5, RELEASED, "height must be an integer >= 1, got 0"),
        (5, -1, RELEASED, "width must be an integer >= 1, got -1"),
        (5, 5, [], "image_grid_pinpoints must be pairs of multiples"),
        (5, 5, [[336, 300]], "image_grid_pinpoints must be pairs of multiples of the tile size 336"),
        (5, 5, [[0, 336]], "image_grid_pinpoints must be pairs of multiples"),
    ],
)
def test_tile_image_names_bad_input(height: int, width: int, pinpoints: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tile_image(height, width, pinpoints=pinpoints, tile_size=336, patch_size=14)


ODD = [10**400, 10**5000, -1, 0, 0.5, float("nan"), float("inf"), 1e-320, True, None, "1", [1], Fraction(3, 2)]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
@pytest.mark.parametrize("name", ["height", "width", "pinpoints", "tile_size", "patch_size"])
def test_tile_image_takes_no_odd_number(name: str, odd: Any) -> None:
    given: dict[str, Any] = {"height": 5, "width": 5, "pinpoints": RELEASED, "tile_size": 336, "patch_size": 14}
    for value in (odd, [odd], [[336, odd]]) if name == "pinpoints" else (odd,):
        with pytest.raises((TypeError, ValueError), match="must be") as caught:
            tile_image(**{**given, name: value})
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
@pytest.mark.parametrize("name", ["grid", "tiles", "window", "frames"])
def test_tiling_takes_no_odd_number(name: str, odd: Any) -> None:
    given: dict[str, Any] = {"grid": (6, 6), "tiles": (2, 1), "window": (0, 12, 0, 6), "frames": 0}
    inside = {"grid": (6, odd), "tiles": (2, odd), "window": (0, 12, 0, odd), "frames": odd}[name]
    if odd != 0 or name == "grid":
        with pytest.raises((TypeError, ValueError), match=f"{name} must be"):
            Tiling(**{**given, name: inside})
    if name != "frames":
        with pytest.raises((TypeError, ValueError), match=f"{name} must be"):
            Tiling(**{**given, name: odd})


def test_processor_is_transformers_own(next_processor: Any) -> None:
    assert type(next_processor) is LlavaNextProcessor
    assert type(next_processor.image_processor).__name__ == "LlavaNextImageProcessorPil"
