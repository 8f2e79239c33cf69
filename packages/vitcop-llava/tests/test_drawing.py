"""The picture of what survives: its size, and that kept, dropped and merged patches look as the legend says."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vitcop_llava.report import StageSurvivors, Survivors
from vitcop_llava.tools.demo.build import demo_processor
from vitcop_llava.tools.pictures.panels import cluster_colors
from vitcop_llava.tools.pictures.survivors import GAP, LEGEND, PANEL, TITLE, as_seen, survival_picture

GRID = (4, 4)
CELL = PANEL // 4


def stage(name: str, layer: int | None, patches: list[int], merged: list[int]) -> StageSurvivors:
    return StageSurvivors(name, layer, torch.tensor(patches), torch.isin(torch.tensor(patches), torch.tensor(merged)))


@pytest.fixture
def survivors() -> Survivors:
    clusters = torch.full((16,), -1)
    clusters[[0, 1, 4, 5]] = 0
    clusters[[10, 11]] = 1
    stages = (
        stage("Stage I", None, [0, 1, 4, 5, 10, 11], []),
        stage("Stage II", 2, [0, 5, 11], [5, 11]),
        stage("Stage III", 6, [0, 11], [11]),
    )
    return Survivors(16, clusters, stages)


def patch(picture: Image.Image, panel: int, number: int) -> Tensor:
    """The pixels ``[height, width, 3]`` of a patch in one of the picture's panels."""
    left, top = GAP + panel * (PANEL + GAP) + number % 4 * CELL, TITLE + number // 4 * CELL
    return torch.from_numpy(np.asarray(picture.crop((left, top, left + CELL, top + CELL))).astype(np.float32))


@pytest.fixture
def picture(survivors: Survivors) -> Image.Image:
    return survival_picture(Image.new("RGB", (PANEL, PANEL), (180, 180, 180)), survivors, GRID)


def test_picture_has_a_panel_for_the_image_and_each_stage(picture: Image.Image, survivors: Survivors) -> None:
    assert picture.size == (GAP + 4 * (PANEL + GAP), TITLE + PANEL + LEGEND + GAP // 2)
    view = Image.new("RGB", (PANEL, PANEL))
    assert survival_picture(view, survivors, GRID, "What is it?  red").height == picture.height + LEGEND


def test_picture_begins_with_the_image(picture: Image.Image) -> None:
    assert all(bool((patch(picture, 0, number) == 180).all()) for number in range(16))


@pytest.mark.parametrize("panel", [1, 3])
def test_dropped_patches_are_darker_than_kept_ones(picture: Image.Image, survivors: Survivors, panel: int) -> None:
    kept = set(survivors.stages[panel - 1].patches.tolist())
    brightness = [float(patch(picture, panel, number).mean()) for number in range(16)]
    darkest_kept = min(brightness[number] for number in kept)
    assert darkest_kept > 2 * max(brightness[number] for number in set(range(16)) - kept)


def test_clusters_have_a_color_each_after_stage_two(picture: Image.Image) -> None:
    middle = [patch(picture, 2, number)[20, 20] for number in range(16)]
    assert torch.equal(middle[1], middle[4])  # of one cluster
    assert not torch.equal(middle[1], middle[10])  # of two
    assert float(middle[15].mean()) < 0.5 * float(middle[1].mean())  # of none


def test_merged_tokens_carry_a_disc_and_kept_ones_an_outline(picture: Image.Image) -> None:
    center = CELL // 2
    color = torch.from_numpy(cluster_colors(2)[0]).float().floor()
    assert torch.equal(patch(picture, 2, 5)[center, center], color)
    assert bool((patch(picture, 2, 0)[0, :, :] == 255).all())
    assert not bool((patch(picture, 2, 1)[0, :, :] == 255).all())  # merged away
    assert bool((patch(picture, 3, 0)[0, :, :] == 255).all())


def test_picture_without_merging_has_no_marks(survivors: Survivors) -> None:
    stages = tuple(stage(each.name, each.layer, each.patches.tolist(), []) for each in survivors.stages)
    plain = Survivors(16, torch.full((16,), -1), stages)
    drawn = survival_picture(Image.new("RGB", (PANEL, PANEL), (180, 180, 180)), plain, GRID)
    assert not any(bool((patch(drawn, panel, 0) == 255).any()) for panel in (1, 2, 3))


def test_picture_refuses_survivors_of_another_grid(survivors: Survivors) -> None:
    with pytest.raises(ValueError, match=r"one image with 3 x 3 patches, got 16"):
        survival_picture(Image.new("RGB", (PANEL, PANEL)), survivors, (3, 3))


def test_captions_that_are_too_long_are_cut(survivors: Survivors) -> None:
    view = Image.new("RGB", (PANEL, PANEL))
    drawn = survival_picture(view, survivors, GRID, "long " * 500)
    assert drawn.crop((drawn.width - GAP, 0, drawn.width, drawn.height)).getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize("size", [(50, 100), (300, 200), (168, 168)])
def test_as_seen_is_what_the_processor_crops(size: tuple[int, int]) -> None:
    processor = demo_processor(12).image_processor
    ramp = np.linspace(0, 255, size[0])[None, :, None] + np.zeros((size[1], 1, 3))
    image = Image.fromarray(ramp.astype(np.uint8))
    seen = as_seen(processor, image)
    assert seen.size == (336, 336)
    plain = processor(image, do_normalize=False, do_rescale=False, return_tensors="np")["pixel_values"][0]
    small = np.asarray(seen.resize((168, 168), Image.Resampling.BOX)).transpose(2, 0, 1)
    assert np.abs(small - plain).mean() < 4


def test_tokens_made_of_others_without_clusters_leave_the_kept_ones_as_they_are() -> None:
    recycled = Survivors(16, torch.full((16,), -1), (stage("Cut 1", 1, [0, 1, 5], [5]),))
    picture = survival_picture(Image.new("RGB", (PANEL, PANEL), (180, 180, 180)), recycled, GRID)
    brightness = [float(patch(picture, 1, number).mean()) for number in range(16)]
    assert min(brightness[0], brightness[1]) > 2 * max(brightness[number] for number in (2, 3, 4, 15))
