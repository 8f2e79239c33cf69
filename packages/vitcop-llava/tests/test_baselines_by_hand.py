"""The baselines inside a model against the model's layers run by hand on plainly shortened sequences, in eager mode."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import vitcop_llava
from vitcop_llava import FastV, PyramidDrop, SparseVLM, VisionZip

Make = Callable[..., Tensor]
PACKED = {"pyramiddrop", "sparsevlm"}
METHODS: dict[str, Any] = {
    "fastv": FastV(retained_tokens=48),
    "pyramiddrop": PyramidDrop(retained_tokens=60),
    "sparsevlm": SparseVLM(counts=(90, 40, 11), layers=(2, 3, 6)),
    "visionzip": VisionZip(counts=(20, 7)),
}


class Hand:
    """A language model's layers, one at a time, with a cache that is a list."""

    def __init__(self, model: Any) -> None:
        self.model, self.language = model, model.model.language_model
        self.past: list[Any] = [None] * len(self.language.layers)
        self.next = [0] * len(self.language.layers)

    def rotate(self, states: Tensor, positions: Tensor) -> Tensor:
        cosines, sines = self.language.rotary_emb(states, positions[None])
        left, right = states.chunk(2, dim=-1)
        rotated: Tensor = states * cosines[0] + torch.cat([-right, left], dim=-1) * sines[0]
        return rotated

    def attend(self, number: int, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights [H, n, S], values, and the layer's keys and values of ``hidden`` [n, d]."""
        layer = self.language.layers[number]
        attention, normed = layer.self_attn, layer.input_layernorm(hidden)
        width = attention.head_dim
        parts = [p(normed).unflatten(-1, (-1, width)).transpose(0, 1) for p in self._projections(attention)]
        queries, keys, values = self.rotate(parts[0], positions), self.rotate(parts[1], positions), parts[2]
        if self.past[number] is not None:
            keys, values = (torch.cat(pair, dim=1) for pair in zip(self.past[number], (keys, values), strict=True))
        groups = queries.shape[0] // keys.shape[0]
        scores = queries @ keys.repeat_interleave(groups, 0).mT * width**-0.5
        causal = torch.ones_like(scores[0], dtype=torch.bool).tril(scores.shape[2] - scores.shape[1])
        weights = scores.masked_fill(~causal, float("-inf")).softmax(-1)
        return weights, values.repeat_interleave(groups, 0), keys, values

    @staticmethod
    def _projections(attention: Any) -> tuple[Any, Any, Any]:
        return attention.q_proj, attention.k_proj, attention.v_proj

    def run(self, number: int, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's output [n, d] and its attention, mean over heads, [n, S]."""
        layer = self.language.layers[number]
        weights, values, keys, own = self.attend(number, hidden, positions)
        self.past[number], self.next[number] = (keys, own), int(positions[-1]) + 1
        hidden = hidden + layer.self_attn.o_proj((weights @ values).transpose(0, 1).flatten(1))
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden)), weights.mean(0)

    def logits(self, hidden: Tensor) -> Tensor:
        found: Tensor = self.model.lm_head(self.language.norm(hidden))
        return found

    def decode(self, token: Tensor, positions: list[int]) -> Tensor:
        hidden = self.language.get_input_embeddings()(token)[None]
        for number, position in enumerate(positions):
            hidden, _ = self.run(number, hidden, torch.tensor([position]))
        return self.logits(hidden)[0]


def recycled(hidden: Tensor, scores: Tensor, kept: list[int]) -> Tensor:
    dropped = [i for i in range(len(hidden)) if i not in kept]
    count = int(0.3 * len(dropped)) + 1
    best = sorted(sorted(dropped, key=lambda i: -float(scores[i]))[:count])
    tokens, clusters = hidden[best].double(), int(count / 10) + 1
    distance = torch.cdist(tokens, tokens, compute_mode="donot_use_mm_for_euclid_dist") / tokens.shape[1] ** 0.5
    # Tokens that are each other's nearest are equally dense; so rounded that they are here.
    density = [float(value) for value in (-(distance**2).sort(1).values[:, :clusters].mean(1)).exp().float()]
    rank = sorted(range(count), key=lambda i: (-density[i], i))
    delta = [0.0] * count
    for place, i in enumerate(rank):
        delta[i] = min((float(distance[i, j]) for j in rank[:place]), default=float(distance.max()))
    centers = sorted(range(count), key=lambda i: (-delta[i] * density[i], i))[:clusters]
    label = [centers.index(i) if i in centers else int(distance[i, centers].argmin()) for i in range(count)]
    means = [tokens[[i for i in range(count) if label[i] == c]].mean(0) for c in range(clusters)]
    return torch.stack(means).to(hidden.dtype)


def raters_of(visual: Tensor, text: Tensor) -> Tensor:
    relevance = (visual.double() @ text.double().T).softmax(1).mean(0)
    raters = relevance > relevance.mean()
    return raters if raters.any() else ~raters


def prefill(hand: Hand, name: str, embeds: Tensor, span: tuple[int, int], plan: Any) -> Tensor:
    """Hidden states of the last layer, for an image at ``span`` of ``embeds`` [L, d]."""
    start, stop = span
    hidden, positions = embeds, torch.arange(len(embeds))
    has_text = stop < len(embeds)
    raters = raters_of(embeds[start:stop], embeds[stop:]) if has_text else torch.empty(0)
    weights = torch.empty(0)
    for number in range(plan.num_layers):
        cut = next((cut for cut in plan.decoder if cut.layer == number), None)
        if cut is not None:
            if name == "pyramiddrop":
                weights = hand.attend(number, hidden, positions)[0].mean(0)
            rows = weights[stop:][raters] if name == "sparsevlm" and has_text else weights[-1:]
            scores = rows.mean(0)[start:stop]
            kept = sorted(scores.topk(cut.keep).indices.tolist())
            visual = hidden[start:stop]
            made = recycled(visual, scores, kept) if name == "sparsevlm" else visual[:0]
            hidden = torch.cat([hidden[:start], visual[kept], made, hidden[stop:]])
            if name in PACKED:
                positions = torch.arange(len(hidden))
            else:
                positions = torch.cat([positions[:start], positions[start:stop][kept], positions[stop:]])
            stop = start + cut.keep + len(made)
        hidden, weights = hand.run(number, hidden, positions)
    return hidden


def zipped(model: Any, images: Tensor, counts: tuple[int, int]) -> Tensor:
    """VisionZip's features of one image, projected, from the eager tower's own attention."""
    tower = model.model.vision_tower
    seen = tower(images, output_hidden_states=True)
    states = seen.hidden_states[-2][0]
    layer = tower.encoder.layers[-2]
    attention = layer.self_attn
    normed = layer.layer_norm1(seen.hidden_states[-3][0])
    heads, width = attention.num_heads, attention.head_dim
    queries, keys = (p(normed).view(-1, heads, width).transpose(0, 1) for p in (attention.q_proj, attention.k_proj))
    scores = (queries[:, :1] @ keys.mT * width**-0.5).softmax(-1).sum(0)[0, 1:]
    dominant, contextual = counts
    kept = sorted((1 + scores.topk(dominant - 1).indices).tolist())
    rest = [i for i in range(1, len(states)) if i not in kept]
    targets = rest[:: max(1, len(rest) // contextual)][:contextual]
    metric = torch.nn.functional.normalize(keys.mean(0), dim=-1)
    others = [i for i in rest if i not in targets]
    joins = (metric[others] @ metric[targets].T).argmax(1).tolist()
    rows = [states[0], *states[kept]]
    for number, target in enumerate(targets):
        group = [i for i, join in zip(others, joins, strict=True) if join == number]
        rows.append(states[target] + (states[group].mean(0) if group else 0))
    projected: Tensor = model.model.multi_modal_projector(torch.stack(rows)[None])[0]
    return projected


def embeddings(model: Any, ids: Tensor, images: Tensor) -> Tensor:
    caught: list[Tensor] = []

    def look(module: Any, args: Any, kwargs: Any) -> None:
        caught.append(kwargs["inputs_embeds"][0])

    handle = model.model.language_model.register_forward_pre_hook(look, with_kwargs=True)
    model(input_ids=ids, pixel_values=images)
    handle.remove()
    return caught[0]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("seed", "words"), [(0, 9), (1, 9), (2, 1), (3, 0)])
def test_prefill_and_decoding_equal_the_layers_by_hand(
    build: Any, prompt: Make, pictures: Make, name: str, kind: str, seed: int, words: int
) -> None:
    model, method = build(kind), METHODS[name]
    ids, images = prompt(3, "image", words, seed=seed), pictures(1 + seed)[seed:]
    start, stop = 4, 4 + 144  # after the first token of every prompt
    assert bool((ids[0, start:stop] == 99).all())
    more = prompt(3, seed=7)[0, 1:]
    with vitcop_llava.prune(model, method) as pruner:
        output = model(input_ids=ids, pixel_values=images)
        cache = output.past_key_values
        steps = [model(input_ids=token.view(1, 1), past_key_values=cache).logits[0, 0] for token in more]
        plan: Any = pruner.report.rows[0].plan
    embeds, hand = embeddings(model, ids, images), Hand(model)
    if name == "visionzip":
        made = zipped(model, images, method.counts)
        embeds = torch.cat([embeds[:start], made, embeds[stop:]])
        stop = start + len(made)
    wanted = hand.logits(prefill(hand, name, embeds, (start, stop), plan))
    torch.testing.assert_close(output.logits[0, -max(words, 1) :], wanted[-max(words, 1) :], atol=2e-5, rtol=0)
    for step, token in zip(steps, more, strict=True):
        length = [past[0].shape[1] for past in hand.past]
        positions = length if name in PACKED else [hand.next[0]] * len(length)
        torch.testing.assert_close(step, hand.decode(token, positions), atol=2e-5, rtol=0)
