"""Methods that choose among projected features: which tokens stay, of every tower, and what is refused."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration, PixtralVisionConfig

import vitcop_llava
from vitcop_core import VisionSelection, VisionView
from vitcop_llava import DivPrune, ViTCoP

Make = Callable[..., Tensor]


def farthest(features: Tensor, count: int) -> list[int]:
    """The tokens that DivPrune keeps of ``features`` [n, d], by loops."""
    directions = torch.nn.functional.normalize(features.double(), dim=1)
    alike = (directions @ directions.T).fill_diagonal_(-2)
    chosen = [int(alike.amax(1).argmin())]
    while len(chosen) < count:
        nearest = alike[:, chosen].amax(1)
        nearest[chosen] = 2
        chosen.append(int(nearest.argmin()))
    return sorted(chosen)


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_farthest_of_the_projected_features_stay(build: Any, prompt: Make, pictures: Make, tower: str) -> None:
    model, images = build(tower=tower), pictures(2)
    features = model.model.get_image_features(images).pooler_output
    with vitcop_llava.prune(model, DivPrune(retained_tokens=20)) as pruner:
        model(input_ids=prompt(3, "image", 2, "image", 8), pixel_values=images)
        found = pruner.survivors().stages[0].patches
    assert found.tolist() == [144 * n + i for n, each in enumerate(features) for i in farthest(each, 20)]


def test_farthest_of_each_tile_stay(next_model: Any, next_inputs: Any) -> None:
    inputs = next_inputs([[2, (131, 77), 3, (10, 90), 2]])
    features = next_model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
    wanted, before = list[int](), 0
    with vitcop_llava.prune(next_model, DivPrune(retention_ratio=1 / 3)) as pruner:
        next_model(**inputs)
        found, plan = pruner.survivors().stages[0].patches.tolist(), pruner.report.rows[0].plan
    assert plan is not None
    assert plan.vision is not None
    keeps = iter(plan.vision.keep)
    for (width, height), each in zip([(131, 77), (10, 90)], features, strict=True):
        config = next_model.config
        tiling = vitcop_llava.tile_image(
            height, width, pinpoints=config.image_grid_pinpoints, tile_size=48, patch_size=8
        )
        top, bottom, left, right = tiling.window
        units: dict[Any, list[int]] = {"base": list(range(36))}
        columns = right - left
        for row in range(top, bottom):
            for column in range(left, right):  # a newline ends each line
                place = 36 + (row - top) * (columns + 1) + column - left
                units.setdefault((row // 6, column // 6), []).append(place)
        number = {
            place: before + at for at, place in enumerate(sorted(place for own in units.values() for place in own))
        }
        for _, own in sorted(units.items(), key=lambda unit: (unit[0] != "base", str(unit[0]))):
            wanted += [number[own[i]] for i in farthest(each[own], next(keeps))]
        before += len(number)
    assert found == sorted(wanted)


def pixtral() -> Any:
    """A tower that takes images of several sizes, and gives the patches of all of them in one row."""
    vision: Any = PixtralVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=96,
        patch_size=8,
    )
    text: Any = {
        "model_type": "llama",
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": 1,
        "eos_token_id": None,
    }
    choice: Any = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=99, **choice)
        model: Any = LlavaForConditionalGeneration(config)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.7 / parameter.shape[-1] ** 0.5)
    return model.eval()


def test_tower_that_stage_one_cannot_read_is_no_obstacle() -> None:
    model = pixtral()
    images = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    rows = [[1, 7, *[99] * 48, 5, 6], [1, 4, 3, *[99] * 20, 5]]
    rows[1] = [0] * (len(rows[0]) - len(rows[1])) + rows[1]
    ids, sizes = torch.tensor(rows), torch.tensor([[48, 64], [40, 32]])
    given = {"input_ids": ids, "attention_mask": (ids > 0).long(), "pixel_values": images, "image_sizes": sizes}
    with torch.no_grad():
        features = model.model.get_image_features(images, image_sizes=sizes).pooler_output
        plain = model(**given).logits
        with vitcop_llava.prune(model, DivPrune(retention_ratio=1)):
            assert torch.equal(model(**given).logits, plain)
        with pytest.raises(ValueError, match="got a PixtralVisionModel"):
            vitcop_llava.prune(model, ViTCoP(retention_ratio=1 / 4))
        with vitcop_llava.prune(model, DivPrune(retention_ratio=1 / 4)) as pruner:
            together = model(**given).logits
            for row, (each, count) in enumerate(zip(features, (12, 5), strict=True)):
                assert pruner.survivors(row).stages[0].patches.tolist() == farthest(each, count)
            for row, (height, width) in enumerate(sizes.tolist()):
                own = ids[row : row + 1, int((ids[row] == 0).sum()) :]
                one = {"pixel_values": images[row : row + 1, :, :height, :width], "image_sizes": sizes[row : row + 1]}
                alone = model(input_ids=own, **one).logits[0]
                torch.testing.assert_close(together[row, -own.shape[1] :], alone, atol=2e-5, rtol=0)
        assert torch.equal(model(**given).logits, plain)


@dataclass(frozen=True)
class Doubled(DivPrune):
    """Makes features of its own."""

    def cut_vision(self, seen: VisionView, *args: Any, **kwargs: Any) -> VisionSelection:
        found = super().cut_vision(seen, *args, **kwargs)
        return replace(found, hidden=2 * seen.hidden[:, : found.index.shape[1]])


def test_features_that_nothing_would_project_are_refused(model: Any, prompt: Make, pictures: Make) -> None:
    wanted = "hidden must be None in the selection of a method that reads projected features, got those of Doubled"
    with vitcop_llava.prune(model, Doubled(retained_tokens=20)), pytest.raises(ValueError, match=wanted):
        model(input_ids=prompt(3, "image", 8), pixel_values=pictures())


def test_nothing_of_the_tower_is_hooked_or_computed_twice(model: Any, prompt: Make, pictures: Make) -> None:
    ran: list[str] = []
    layers = model.model.vision_tower.encoder.layers
    handles = [layer.self_attn.k_proj.register_forward_hook(lambda *_: ran.append("keys")) for layer in layers[:-1]]
    with vitcop_llava.prune(model, DivPrune(retained_tokens=20)):
        model(input_ids=prompt(3, "image", 8), pixel_values=pictures())
    for handle in handles:
        handle.remove()
    assert len(ran) == len(layers) - 1
