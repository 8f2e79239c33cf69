"""Parts of a pruned model that are called by somebody else give what they give unpruned."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

import vitcop_llava
from vitcop_llava import VisionZip, ViTCoP

Make = Callable[..., Tensor]
METHODS = [ViTCoP(retained_tokens=24, cutoff_distance=3.0), VisionZip(retained_tokens=24)]
by_name = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)


@by_name
def test_features_made_inside_are_whole(model: Any, prompt: Make, pictures: Make, method: Any) -> None:
    ids, images = prompt(3, "image", 8), pictures()
    wanted = model.get_image_features(images, return_dict=True).pooler_output
    logits = model(input_ids=ids, pixel_values=images).logits
    with vitcop_llava.prune(model, method) as pruner:
        found = model.get_image_features(images, return_dict=True).pooler_output
        assert all(torch.equal(mine, other) for mine, other in zip(found, wanted, strict=True))
        embeds = model.get_input_embeddings()(ids).masked_scatter((ids == 99)[..., None], torch.cat([*found]))
        assert torch.equal(model(inputs_embeds=embeds).logits, logits)
        assert not pruner.report.pruned


@by_name
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "beside-a-call"])
def test_tower_and_projector_called_by_hand_are_whole(
    model: Any, prompt: Make, pictures: Make, method: Any, inside: bool
) -> None:
    images = pictures(seed=4)

    def by_hand() -> Tensor:
        states = model.model.vision_tower(images, output_hidden_states=True).hidden_states
        features: Tensor = model.model.multi_modal_projector(states[-2][:, 1:])
        return features

    wanted = by_hand()
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    with vitcop_llava.prune(model, method):
        logits = model(**given).logits
        found = [by_hand()]
        if inside:  # a hook of the caller's that looks at another picture while the first is being answered
            layer = model.model.language_model.layers[3]
            handle = layer.register_forward_hook(lambda *_: found.append(by_hand()))
            try:
                assert torch.equal(model(**given).logits, logits)
            finally:
                handle.remove()
    assert all(torch.equal(each, wanted) for each in found)
    assert len(found) == 1 + inside


@by_name
@pytest.mark.parametrize("place", ["layers.3", "norm"])
def test_features_made_in_the_middle_of_a_call_are_whole(
    model: Any, prompt: Make, pictures: Make, method: Any, place: str
) -> None:
    images, found = pictures(seed=4), list[Tensor]()
    (wanted,) = model.get_image_features(images, return_dict=True).pooler_output
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    with vitcop_llava.prune(model, method):
        logits = model(**given).logits
        where = model.model.language_model.get_submodule(place)
        handle = where.register_forward_hook(
            lambda *_: found.extend(model.get_image_features(images, return_dict=True).pooler_output)
        )
        try:
            assert torch.equal(model(**given).logits, logits)
        finally:
            handle.remove()
    assert all(torch.equal(each, wanted) for each in found)
    assert found


class Looking(LogitsProcessor):
    """Looks at a picture while the model generates."""

    def __init__(self, model: Any, images: Tensor) -> None:
        self.model, self.images, self.seen = model, images, list[Tensor]()

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.seen += self.model.get_image_features(self.images, return_dict=True).pooler_output
        return scores


@by_name
def test_features_made_while_generating_are_whole(model: Any, prompt: Make, pictures: Make, method: Any) -> None:
    ids, images = prompt(3, "image", 8), pictures(seed=4)
    (wanted,) = model.get_image_features(images, return_dict=True).pooler_output
    looking = Looking(model, images)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures()}
    with vitcop_llava.prune(model, method):
        made = model.generate(**given, max_new_tokens=2)
        again = model.generate(**given, max_new_tokens=2, logits_processor=LogitsProcessorList([looking]))
    assert torch.equal(made, again)
    assert len(looking.seen) == 2
    assert all(torch.equal(each, wanted) for each in looking.seen)


@by_name
def test_tower_alone_leaves_later_features_whole(model: Any, pictures: Make, method: Any) -> None:
    states = model.model.vision_tower(pictures(), output_hidden_states=True).hidden_states
    with vitcop_llava.prune(model, method):
        model.model.vision_tower(pictures(seed=1))
        found = model.model.multi_modal_projector(states[-1][:, 1:])
    assert torch.equal(found, model.model.multi_modal_projector(states[-1][:, 1:]))


def test_tile_features_made_inside_are_whole(next_model: Any, next_inputs: Any) -> None:
    given = next_inputs([[2, (131, 77), 3]])
    images = {name: given[name] for name in ("pixel_values", "image_sizes")}
    (wanted,) = next_model.get_image_features(**images, return_dict=True).pooler_output
    with vitcop_llava.prune(next_model, METHODS[0]):
        (found,) = next_model.get_image_features(**images, return_dict=True).pooler_output
    assert torch.equal(found, wanted)


@pytest.fixture
def sharing(model: Any, build: Callable[..., Any]) -> Any:
    """A model of its own language that looks through the eyes of ``model``."""
    other, own = build("qwen2"), {}
    for name in ("vision_tower", "multi_modal_projector"):
        own[name] = getattr(other.model, name)
        setattr(other.model, name, getattr(model.model, name))
    yield other
    for name, part in own.items():
        setattr(other.model, name, part)


@by_name
def test_unpruned_model_with_the_same_tower_is_whole(
    model: Any, sharing: Any, prompt: Make, pictures: Make, method: Any
) -> None:
    ids = prompt(3, "image", 8)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures()}
    wanted = sharing(**given).logits, sharing.generate(**given, max_new_tokens=4)
    with vitcop_llava.prune(model, method):
        assert torch.equal(sharing(**given).logits, wanted[0])
        assert torch.equal(sharing.generate(**given, max_new_tokens=4), wanted[1])


def test_two_pruned_models_with_one_tower(model: Any, sharing: Any, prompt: Make, pictures: Make) -> None:
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    alone = []
    for one, method in zip((model, sharing), METHODS, strict=True):
        with vitcop_llava.prune(one, method):
            alone.append(one(**given).logits)
    with vitcop_llava.prune(model, METHODS[0]), vitcop_llava.prune(sharing, METHODS[1]):
        assert torch.equal(model(**given).logits, alone[0])
        assert torch.equal(sharing(**given).logits, alone[1])
