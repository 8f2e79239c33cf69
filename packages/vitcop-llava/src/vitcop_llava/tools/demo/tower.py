"""Stage one of training: the vision tower, and the features that the other stages learn from."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from vitcop_llava.tools.demo.labels import PATCH_CLASSES, PRESENCE
from vitcop_llava.tools.demo.optimize import descend, optimizer_for, shuffled
from vitcop_llava.tools.demo.scenes import MAX_SHAPES


def normalized(pixels: Tensor, processor: LlavaProcessor) -> Tensor:
    """Turn uint8 ``[n, side, side, 3]`` into the float32 ``[n, 3, side, side]`` that the image processor makes of
    it.
    """
    mean = torch.tensor(processor.image_processor.image_mean, device=pixels.device)
    std = torch.tensor(processor.image_processor.image_std, device=pixels.device)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)


class TowerHeads(nn.Module):
    """Read-outs that exist during training alone: dense ones on the selected feature, a global one on CLS."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.ModuleDict({name: nn.Linear(width, count) for name, count in PATCH_CLASSES.items()})
        self.center = nn.Linear(width, 1)
        self.present = nn.ModuleList([nn.Linear(width, PRESENCE) for _ in range(2)])
        self.count = nn.Linear(width, MAX_SHAPES + 1)

    def loss(self, selected: Tensor, pooled: Tensor, labels: Tensor, found: Tensor) -> Tensor:
        """Return ``selected`` [b, 1 + n, d] is the feature layer, CLS first; ``pooled`` [b, d] the tower's last CLS."""
        cls, patches = selected[:, 0], selected[:, 1:]
        total = torch.zeros((), device=selected.device)
        for column, (name, head) in enumerate(self.dense.items()):
            weight = torch.ones(PATCH_CLASSES[name], device=selected.device)
            weight[0] = 0.3
            logits = head(patches).flatten(0, 1)
            scale = 2.0 if name == "mark" else 1.0  # the finest detail, and the last to be learned
            total = total + scale * functional.cross_entropy(logits, labels[..., column].flatten(), weight=weight)
        center = functional.binary_cross_entropy_with_logits(
            self.center(patches)[..., 0], labels[..., 4].float(), pos_weight=torch.tensor(5.0, device=selected.device)
        )
        total = total + center
        for head, row in zip(self.present, (cls, pooled), strict=True):
            total = total + 4 * functional.binary_cross_entropy_with_logits(head(row), found)
        shapes = labels[..., 4].sum(dim=1)
        return total + 0.3 * functional.cross_entropy(self.count(cls), shapes)

    @torch.no_grad()
    def accuracy(self, selected: Tensor, labels: Tensor) -> dict[str, float]:
        """Share of the patches under a shape that each dense read-out gets right."""
        shaped = labels[..., 0] > 0
        right = {}
        for column, (name, head) in enumerate(self.dense.items()):
            guess = head(selected[:, 1:]).argmax(-1)
            right[name] = (guess == labels[..., column])[shaped].float().mean().item()
        return right


def train_tower(
    model: LlavaForConditionalGeneration,
    scenes: tuple[Tensor, Tensor, Tensor],
    processor: LlavaProcessor,
    args: argparse.Namespace,
    log: Callable[..., None],
) -> None:
    """Train stage one: the vision tower on dense labels under each patch and presence labels on CLS."""
    device, tower = args.device, model.model.vision_tower
    heads = TowerHeads(tower.config.hidden_size).to(device)
    optimizer, schedule = optimizer_for(
        [*tower.parameters(), *heads.parameters()], args.tower_rate, args.tower_steps, 100
    )
    order = shuffled(len(scenes[0]), args.seed)
    started = time.monotonic()
    for step in tqdm(range(args.tower_steps), desc="tower"):
        picks = torch.tensor([next(order) for _ in range(args.tower_batch)])
        pixels, labels, found = (part[picks].to(device) for part in scenes)
        out = tower(normalized(pixels, processor), output_hidden_states=True)
        loss = heads.loss(out.hidden_states[-2], out.pooler_output, labels.long(), found)
        descend(loss, optimizer, schedule, tower.parameters())
        if step % 50 == 0 or step == args.tower_steps - 1:
            right = heads.accuracy(out.hidden_states[-2], labels)
            log(stage="tower", step=step, loss=loss.item(), seconds=time.monotonic() - started, patches=right)


def tower_features(
    model: LlavaForConditionalGeneration, pixels: Tensor, processor: LlavaProcessor, args: argparse.Namespace
) -> Tensor:
    """Return the selected feature of every scene, ``[n, grid * grid, d]`` in float16."""
    parts = []
    with torch.inference_mode():
        for start in tqdm(range(0, len(pixels), 128), desc="features"):
            batch = normalized(pixels[start : start + 128].to(args.device), processor)
            out = model.model.vision_tower(batch, output_hidden_states=True)
            parts.append(out.hidden_states[-2][:, 1:].half().cpu())
    return torch.cat(parts)
