"""What comes out has the shapes of what went in."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import vitcop_llava

Make = Callable[..., Tensor]


def test_logits_and_hidden_states_have_the_callers_length(
    model: Any, prompt: Make, pictures: Make, budget: Any
) -> None:
    ids = prompt(3, "image", 8)
    with vitcop_llava.prune(model, budget()):
        output = model(input_ids=ids, pixel_values=pictures(), output_hidden_states=True)
    assert output.logits.shape == (1, ids.shape[1], 100)
    assert [state.shape[1] for state in output.hidden_states] == [ids.shape[1]] * 9
    assert torch.equal(model.lm_head(output.hidden_states[-1]), output.logits)


def test_dropped_columns_are_zero_but_the_last_of_an_image(
    model: Any, prompt: Make, pictures: Make, budget: Any
) -> None:
    ids = prompt(3, "image", 8)
    with vitcop_llava.prune(model, budget()) as pruner:
        output = model(input_ids=ids, pixel_values=pictures(), output_hidden_states=True)
        kept = [{4 + patch for patch in stage.patches.tolist()} for stage in pruner.survivors().stages]
    text = set(range(4)) | set(range(148, 156))
    for number, state in enumerate(output.hidden_states):
        stage = kept[0 if number <= 1 else 1 if number <= 6 else 2]
        filled = set(state[0].abs().sum(-1).nonzero().flatten().tolist())
        assert filled == text | stage | {147}
        assert torch.equal(state[0, 147], state[0, max(stage)])


def test_text_after_an_image_is_predicted_from_its_last_survivor(
    model: Any, prompt: Make, pictures: Make, budget: Any
) -> None:
    ids = prompt(3, "image")
    with vitcop_llava.prune(model, budget()):
        logits = model(input_ids=ids, pixel_values=pictures()).logits[:, -1]
        answer = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pictures(), max_new_tokens=1
        )
    assert answer[0, -1] == logits.argmax()
    assert logits.abs().sum() > 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_equals_loss_by_hand(model: Any, prompt: Make, pictures: Make, pad: Any, budget: Any, side: str) -> None:
    rows = [prompt(2, "image", 8), prompt("image", 3, "image", 4, seed=1), prompt(20, seed=2)]
    batch = pad(rows, side)
    labels = batch["input_ids"].masked_fill((batch["attention_mask"] == 0) | (batch["input_ids"] == 99), -100)
    with vitcop_llava.prune(model, budget()):
        output = model(**batch, pixel_values=pictures(3), labels=labels)
    by_hand = functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(output.loss, by_hand)


def test_selected_hidden_states_and_tuples_come_as_asked(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    given = {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    with vitcop_llava.prune(model, budget()):
        whole = model(**given, output_hidden_states=True)
        as_tuple = model(**given, return_dict=False)
        kept = model(**given, logits_to_keep=3)
    assert torch.equal(as_tuple[0], whole.logits)
    torch.testing.assert_close(kept.logits, whole.logits[:, -3:], atol=1e-5, rtol=0)


def test_attentions_have_each_layers_physical_size(build: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    model, ids = build(attention="eager"), prompt(3, "image", 8)
    with vitcop_llava.prune(model, budget()) as pruner:
        output = model(input_ids=ids, pixel_values=pictures(), output_attentions=True)
        plan: Any = pruner.report.rows[0].plan
    lengths = [12 + tokens for tokens in plan.tokens_per_layer]
    assert [tuple(rows.shape) for rows in output.attentions] == [(1, 4, n, n) for n in lengths]
    assert all(torch.allclose(rows.sum(-1), torch.ones(())) for rows in output.attentions)


def test_embedded_prompt_with_pictures_is_pruned_alike(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    ids = prompt(3, "image", 8)
    with vitcop_llava.prune(model, budget()) as pruner:
        wanted = model(input_ids=ids, pixel_values=pictures()).logits
        embeds = model.get_input_embeddings()(ids)
        found = model(inputs_embeds=embeds, pixel_values=pictures()).logits
        assert pruner.report.pruned
    assert torch.equal(found, wanted)
