"""Leaving the block leaves the model, and the caller's thread, as they were."""

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

import vitcop_llava
from vitcop_llava import ViTCoP
from vitcop_llava.hooks.active import active_call, active_tower

Make = Callable[..., Tensor]
# All but a flag, which is set once a module has had a backward hook: it is compared with the other attributes.
HOOKS = [name for name, value in vars(nn.Module()).items() if "hook" in name and isinstance(value, dict)]


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that a module holds, for every module: attributes by name and identity, hooks by number."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        attributes = {key: id(value) for key, value in vars(module).items() if not isinstance(value, dict)}
        hooks = {key: dict(getattr(module, key)) for key in HOOKS}
        found[name] = (type(module), sorted(vars(module)), attributes, hooks)
    found["state_dict"] = {key: value.data_ptr() for key, value in model.state_dict().items()}
    return found


@pytest.fixture
def untouched(model: Any, prompt: Make, pictures: Make) -> Iterator[None]:
    """Fails a test that leaves anything on the model, or changes what it computes."""
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    before, logits = snapshot(model), model(**given).logits
    yield
    assert snapshot(model) == before
    assert active_call() is None
    assert torch.equal(model(**given).logits, logits)


@pytest.mark.parametrize("method", [ViTCoP(retention_ratio=1), ViTCoP(retention_ratio=1 / 9)], ids=["all", "ninth"])
def test_block_leaves_nothing(model: Any, prompt: Make, pictures: Make, untouched: None, method: ViTCoP) -> None:
    for _ in range(3):
        with vitcop_llava.prune(model, method):
            model(input_ids=prompt(3, "image", 8), pixel_values=pictures())


def test_handle_leaves_nothing_and_removes_twice(model: Any, budget: Any, untouched: None) -> None:
    pruner = vitcop_llava.prune(model, budget())
    pruner.remove()
    pruner.remove()
    other = vitcop_llava.prune(model, budget())
    pruner.remove()
    with pytest.raises(ValueError, match="model must not be pruned already"):
        vitcop_llava.prune(model, budget())
    other.remove()


def test_pruner_is_entered_once_while_it_is_on(model: Any, budget: Any, untouched: None) -> None:
    pruner = vitcop_llava.prune(model, budget())
    with pruner, pytest.raises(ValueError, match=r"entered once, .*, got one that is entered already"), pruner:
        pass
    with pytest.raises(ValueError, match=r"entered once, .*, got one that was removed; call prune again"), pruner:
        pass


def test_lost_pruner_is_found(model: Any, budget: Any, untouched: None) -> None:
    assert vitcop_llava.pruner_of(model) is None
    vitcop_llava.prune(model, budget())
    gc.collect()
    with pytest.raises(ValueError, match=r"vitcop_llava\.pruner_of\(model\)\.remove\(\)"):
        vitcop_llava.prune(model, budget())
    found = vitcop_llava.pruner_of(model)
    assert found is not None
    assert found.method == budget()
    found.remove()
    assert vitcop_llava.pruner_of(model) is None


PLACES = {
    "decoder layer": lambda model: model.model.language_model.layers[3].mlp,
    "first layer": lambda model: model.model.language_model.layers[0],
    "tower": lambda model: model.model.vision_tower.encoder.layers[1],
    "projector": lambda model: model.model.multi_modal_projector.act,
    "norm": lambda model: model.model.language_model.norm,
}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt], ids=["error", "interrupt"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("run", ["forward", "generate"])
def test_exception_leaves_nothing(
    model: Any,
    prompt: Make,
    pictures: Make,
    budget: Any,
    untouched: None,
    monkeypatch: pytest.MonkeyPatch,
    run: str,
    place: str,
    error: type[BaseException],
) -> None:
    ids = prompt(3, "image", 8)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures()}

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error("on purpose")

    with vitcop_llava.prune(model, budget()) as pruner:
        wanted = model(**given).logits
        with monkeypatch.context() as patch:
            patch.setattr(PLACES[place](model), "forward", fail)
            with pytest.raises(error, match="on purpose"):
                model(**given) if run == "forward" else model.generate(**given, max_new_tokens=2)
        if error is RuntimeError:
            assert active_call() is None
            assert active_tower(pruner._owner) is None
        assert torch.equal(model(**given).logits, wanted)


def test_nested_pruning_is_refused_and_the_outer_goes_on(
    model: Any, prompt: Make, pictures: Make, budget: Any, untouched: None
) -> None:
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    with vitcop_llava.prune(model, budget()) as pruner:
        wanted = model(**given).logits
        with (
            pytest.raises(ValueError, match="model must not be pruned already"),
            vitcop_llava.prune(model, budget("1/3")),
        ):
            pass
        assert torch.equal(model(**given).logits, wanted)
        assert pruner.report.pruned


def test_two_models_nest(build: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    one, two = build(), build("qwen2")
    with vitcop_llava.prune(one, budget()):
        alone = one(**given).logits
    before = snapshot(one), snapshot(two)
    with vitcop_llava.prune(one, budget()) as outer, vitcop_llava.prune(two, budget("1/3")) as inner:
        handle = one.model.language_model.layers[4].register_forward_hook(lambda *_: two(**given) and None)
        assert torch.equal(one(**given).logits, alone)
        handle.remove()
    assert (snapshot(one), snapshot(two)) == before
    assert outer.report.rows[0].plan != inner.report.rows[0].plan


def test_failing_to_attach_leaves_nothing(
    model: Any, budget: Any, untouched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(model.model.multi_modal_projector, "register_forward_hook", fail)
        with pytest.raises(RuntimeError, match="on purpose"):
            vitcop_llava.prune(model, budget())
    vitcop_llava.prune(model, budget()).remove()


def test_pruner_lets_go_of_cache_and_activations(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    with vitcop_llava.prune(model, budget()) as pruner:
        cache: Any = DynamicCache(config=model.config)
        output = model(input_ids=prompt(3, "image", 8), pixel_values=pictures(), past_key_values=cache)
        keys = weakref.ref(cache.layers[0].keys)
        whole, logits = weakref.ref(cache), weakref.ref(output.logits)
        del cache, output
        gc.collect()
        assert (keys(), whole(), logits()) == (None, None, None)
        assert pruner.report.pruned


def test_pruner_does_not_keep_the_model_alive(build: Any, budget: Any) -> None:
    import copy

    model = copy.deepcopy(build())
    vitcop_llava.prune(model, budget()).remove()
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
