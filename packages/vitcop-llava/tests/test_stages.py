"""The three stages, told again slowly: loops, float64, and the model's layers run by hand."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import vitcop_llava

Make = Callable[..., Tensor]


@pytest.mark.parametrize("share", ["1/3", "2/9", "1/9", "1/18"])
def test_stage_one_equals_eager_attention(build: Any, prompt: Make, pictures: Make, budget: Any, share: str) -> None:
    with vitcop_llava.prune(build(), budget(share)) as pruner:
        build()(input_ids=prompt(3, "image", 2, "image"), pixel_values=pictures(2))
        plan: Any = pruner.report.rows[0].plan
        found, keep = pruner.survivors().stages[0].patches, plan.vision.keep
    rows = build(attention="eager").model.vision_tower(pictures(2), output_attentions=True).attentions[2]
    saliency = rows[:, :, 0, 1:].sum(1)
    best = [saliency[image].topk(keep[image]).indices.sort().values + 144 * image for image in range(2)]
    assert torch.equal(found, torch.cat(best))


def slow_clusters(features: Tensor, places: Tensor, count: int, cutoff: float) -> list[int]:
    """Algorithm 2, one token at a time."""
    n = len(features)
    far = torch.cdist(features, features).tolist()
    density = [sum(math.exp(-((far[i][j] / cutoff) ** 2)) for j in range(n) if j != i) for i in range(n)]
    order = sorted(range(n), key=lambda i: (-density[i], i))
    parent: dict[int, int | None] = {}
    importance: dict[int, float] = {}
    for rank, i in enumerate(order):
        near = [j for j in order[:rank] if float((places[i] - places[j]).norm()) <= 0.6 + 1e-6]
        parent[i] = min(near, key=lambda j: (far[i][j], j), default=None)
        importance[i] = math.inf if (up := parent[i]) is None else density[i] * far[i][up]
    centers = sorted(range(n), key=lambda i: (-importance[i], -density[i], i))[:count]
    labels = {center: label for label, center in enumerate(centers)}
    for i in order:
        if i not in labels:
            up = parent[i]
            labels[i] = min(range(count), key=lambda c: far[i][centers[c]]) if up is None else labels[up]
    return [labels[i] for i in range(n)]


def slow_groups(labels: list[int], norms: list[float], keep: int) -> list[tuple[list[int], bool]]:
    """Algorithm 3: the tokens behind each output, and whether they are merged; in order of place."""
    clusters = [[i for i, label in enumerate(labels) if label == c] for c in range(max(labels) + 1)]
    elites = keep - len(clusters)
    quotas = [len(c) * elites // len(labels) for c in clusters]
    rest = sorted(range(len(clusters)), key=lambda c: (-(len(clusters[c]) * elites % len(labels)), c))
    while sum(quotas) < elites:
        for c in rest:
            if sum(quotas) < elites and quotas[c] < len(clusters[c]) - 1:
                quotas[c] += 1
    groups = []
    for cluster, quota in zip(clusters, quotas, strict=True):
        best = sorted(cluster, key=lambda i: (norms[i], i))
        groups += [([i], False) for i in best[:quota]] + [(sorted(best[quota:]), True)]
    return sorted(groups, key=lambda group: group[0][len(group[0]) // 2])


class ByHand:
    """The model's layers in float64, a segment at a time."""

    def __init__(self, model: Any) -> None:
        self.model = copy.deepcopy(model).double()
        self.layers = self.model.model.language_model.layers

    def enter(self, ids: Tensor, images: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states and kept patches of a prompt with one image, and the features that are clustered."""
        tower, projector = self.model.model.vision_tower, self.model.model.multi_modal_projector
        states = tower(images.double(), output_hidden_states=True).hidden_states
        block = tower.encoder.layers[2]
        normed = block.layer_norm1(states[2])[0]
        queries, keys = (getattr(block.self_attn, name)(normed).unflatten(-1, (4, 8)) for name in ("q_proj", "k_proj"))
        scores = torch.einsum("he,nhe->hn", queries[0], keys) * 8**-0.5
        patches = scores.softmax(-1).sum(0)[1:].topk(keep).indices.sort().values
        embeds = self.model.get_input_embeddings()(ids[0])
        start = int((ids[0] == 99).nonzero()[0])
        image = projector(states[3][:, 1:])[0, patches]
        hidden = torch.cat([embeds[:start], image, embeds[start + 144 :]])
        return hidden, patches, keys[1:].flatten(1)[patches]

    def run(self, hidden: Tensor, positions: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
        """The output of layers ``first .. last - 1``, and the key norms of the last of them."""
        hidden = hidden[None]
        angles = self.model.model.language_model.rotary_emb(hidden, positions[None])
        mask = torch.full((len(positions),) * 2, -math.inf, dtype=torch.float64).triu(1)[None, None]
        for layer in self.layers[first:last]:
            norms = layer.self_attn.k_proj(layer.input_layernorm(hidden))[0].norm(dim=-1)
            hidden = layer(hidden, attention_mask=mask, position_embeddings=angles)
        return hidden[0], norms


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", ["1/3", "2/9", "1/9"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_stages_equal_slow_restatement(
    build: Any, prompt: Make, pictures: Make, budget: Any, kind: str, share: str, seed: int
) -> None:
    model, ids, images = build(kind), prompt(3, "image", 8, seed=seed), pictures(seed=seed)
    with vitcop_llava.prune(model, budget(share)) as pruner:
        output = model(input_ids=ids, pixel_values=images, output_hidden_states=True)
        plan: Any = pruner.report.rows[0].plan
        found = pruner.survivors()
    hand, (second, third) = ByHand(model), plan.decoder
    hidden, patches, features = hand.enter(ids, images, plan.vision.keep[0])
    assert torch.equal(found.stages[0].patches, patches)
    places = torch.stack([patches // 12, patches % 12], dim=1) / 12
    labels = slow_clusters(features, places, plan.vision.clusters[0], 3.0)
    assert found.clusters[patches].tolist() == labels

    positions = torch.arange(len(hidden))
    hidden, norms = hand.run(hidden, positions, 0, second.layer)
    tokens, text = slice(4, 4 + len(patches)), 4 + len(patches)
    groups = slow_groups(labels, norms[tokens].tolist(), second.keep)
    merged = torch.stack([hidden[tokens][members].mean(0) for members, _ in groups])
    places = torch.tensor([members[len(members) // 2] for members, _ in groups])
    assert torch.equal(found.stages[1].patches, patches[places])
    assert found.stages[1].merged.tolist() == [is_merged for _, is_merged in groups]
    hidden = torch.cat([hidden[:4], merged, hidden[text:]])
    positions = torch.cat([positions[:4], 4 + places, positions[text:]])

    hidden, norms = hand.run(hidden, positions, second.layer, third.layer)
    columns = torch.cat([torch.arange(4), 4 + patches[places], torch.arange(148, 156)])
    torch.testing.assert_close(output.hidden_states[third.layer][0, columns].double(), hidden, atol=1e-5, rtol=1e-5)
    keep = norms[4 : 4 + len(groups)].topk(third.keep, largest=False).indices.sort().values
    assert torch.equal(found.stages[2].patches, patches[places[keep]])
    slots = torch.cat([torch.arange(4), 4 + keep, torch.arange(4 + len(groups), len(hidden))])
    hidden, _ = hand.run(hidden[slots], positions[slots], third.layer, 8)
    logits = hand.model.lm_head(hand.model.model.language_model.norm(hidden))
    torch.testing.assert_close(output.logits[0, columns[slots]].double(), logits, atol=1e-5, rtol=1e-5)
