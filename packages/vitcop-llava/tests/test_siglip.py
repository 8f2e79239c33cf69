"""A tower without a CLS token: Stage I ranks its patches by the attention that they receive."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import vitcop_llava
from vitcop_llava import VisionZip, ViTCoP

Make = Callable[..., Tensor]
METHODS = {
    "vitcop": ViTCoP(retained_tokens=24, cutoff_distance=3.0),
    "zip": VisionZip(retained_tokens=24),
}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@pytest.mark.parametrize(("tower", "saliency"), [("siglip", "auto"), ("siglip", "received"), ("clip", "received")])
@pytest.mark.parametrize("layer", [-2, -1, 2])
def test_patches_are_ranked_by_what_they_receive(
    build: Any, prompt: Make, pictures: Make, tower: str, saliency: Any, layer: int
) -> None:
    """As the tower itself computes its attention, in the layer whose output is the feature."""
    model, ids, images = build("llama", "eager", tower=tower, layer=layer), prompt(3, "image", 8), pictures()
    maps = model.model.vision_tower(images, output_attentions=True).attentions
    received = maps[layer % 5 - 1][0].mean((0, 1))[-144:]
    with vitcop_llava.prune(model, ViTCoP(retained_tokens=24, vision_saliency=saliency)) as pruner:
        model(input_ids=ids, pixel_values=images)
        kept = pruner.survivors().stages[0].patches
    assert len(kept) == 50
    assert torch.equal(kept, received.topk(50).indices.sort().values)


@pytest.mark.parametrize("method", [ViTCoP, VisionZip])
def test_cls_of_a_tower_without_one_is_refused_before_any_work(build: Any, method: Any) -> None:
    model = build(tower="siglip")
    wanted = "model must have a vision tower with a CLS token for .*, got a SiglipVisionModel; use .*'received' or"
    with pytest.raises(ValueError, match=wanted):
        vitcop_llava.prune(model, method(retained_tokens=24, vision_saliency="cls"))
    with vitcop_llava.prune(model, method(retained_tokens=24, vision_saliency="received")) as pruner:
        assert "received" in repr(pruner)
