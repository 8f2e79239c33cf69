"""Settings in Python: every method and function of the packages with numbers and things that nobody would give."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import fields
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from ordeal.models import LAYERS, PATCHES, pictures, prompt, tiny_model
from ordeal.mutate import ODD_TEXTS
from ordeal.trials import Trial, demand, documented
from vitcop_core import (
    LanguageModelShape,
    default_center_ratio,
    default_layers,
    feasible_range,
    identity_plan,
    methods,
    solve_ratios,
)
from vitcop_core.parsing import METHODS
from vitcop_llava import FeatureScaleWarning, ImagePrefix, embed_images, encode_image, prune, tile_image

NUMBERS: tuple[Any, ...] = (
    *(0, 1, 2, 3, 6, 9, 36, 64, -1, 10**9, 2**31, 2**63, 10**400, -(10**400), True, False),
    *(0.0, -0.0, 0.5, 1.0, 1 / 3, 2.5, 1e-320, 1e308, float("nan"), float("inf"), -float("inf")),
    *(Fraction(1, 9), Fraction(10**400), Fraction(1, 10**400), Decimal("0.5"), Decimal("nan"), 1j),
    *(np.float32(0.5), np.int8(3), np.float64("nan"), np.int64(36), np.bool_(True), np.array(3), np.array([1, 2])),
)
THINGS: tuple[Any, ...] = (
    *(None, "", "auto", "paper", "official", "received", "cls", "attention", *ODD_TEXTS[:12], b"x", object(), int),
    *((), (1, 3), (3, 1), (0, 0), (1, 2, 3), (1.0, 3.0), ("1", 3), (1, None), (0.5, 0.4, 0.1), (1, 1, 1), [1, 3]),
    *({}, {1: 2}, set(), lambda: 0, torch.tensor(3), torch.tensor([0.5, 0.2]), range(3), ((1, 3),), Path("x")),
)


FITTING: dict[str, tuple[Any, ...]] = {
    "retained_tokens": (1, 5, 9, 12, 18, 30, 36, 9.5),
    "retention_ratio": (Fraction(1, 9), 1 / 3, 0.5, 1, Fraction(2, 3)),
    "ratios": ((0.5, 0.4, 0.1), (1, 1, 1), (Fraction(1, 2), Fraction(1, 36), Fraction(1, 36))),
    "pi1": (0.5, 1, Fraction(1, 3)),
    "layers": ((1, 2), (1, 3), (2, 3), (3, 3), (0, 1)),
    "layer": (1, 2, 3, 0),
    "cutoff_distance": (3.0, "auto", 1e-6, 1e6, 1e-300, 1e300),
    "spatial_threshold": (0.1, 0.6, 1e-300, 1e300, 0),
    "center_ratio": (0.05, 0.5, 1, 1e-9),
    "vision_saliency": ("cls", "received", "auto"),
    "saliency": ("key_norm", "attention"),
    "compat": ("paper", "official"),
    "knorm": ("joint", "head_mean"),
    "merge": ("mean", "anchor_plus_mean"),
    "quota": ("top_up", "rounded"),
    "counts": ("floor", "chained"),
    "vic_features": ("vit_keys", "vision_hidden"),
    "deep_positions": ("kept", "reindexed"),
    "centers_round": ("ceil", "floor"),
    "stage_one": (True, False),
    "stage_three": (True, False),
    "clustering": (True, False),
    "cluster_frames": (1, 2, 8),
}
"""Values that may be right, alone or together."""


def prepare(folder: Path) -> Trial:
    """A trial makes a method of odd settings and uses it, or calls a public function with odd arguments."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    for category in (DeprecationWarning, FeatureScaleWarning, RuntimeWarning):
        warnings.simplefilter("ignore", category)
    model = tiny_model()
    given = {"input_ids": prompt(3, "image", 4), "pixel_values": pictures()}
    calls = _functions(model, given)

    def trial(random: Random) -> None:
        if random.random() < 0.3:
            with documented(ValueError, TypeError, OSError):
                random.choice(calls)(lambda: odd(random))
            return
        with documented(ValueError, TypeError):
            method = _method(random)
            hash(method), repr(method)
            layers, tokens = (LAYERS, PATCHES) if random.random() < 0.6 else (odd(random), odd(random))
            plan = method.plan(layers, tokens)
        demand(0 < plan.average_tokens <= plan.visual_tokens, f"{method!r} has a plan of {plan.average_tokens}")
        if (layers, tokens) != (LAYERS, PATCHES) or random.random() < 0.5:
            return
        with documented(ValueError, TypeError), prune(model, method) as pruner:
            logits = model(**given).logits
        demand(bool(torch.isfinite(logits).all()), f"{method!r} gives logits that are not finite")
        if pruner.report.pruned:
            demand(pruner.report.rows[0].plan == plan, f"{method!r} keeps other than {plan}")
            pruner.survivors(), str(pruner.report), pruner.report.macs(), pruner.report.kv_bytes()

    return trial


def odd(random: Random) -> Any:
    """A value for an argument: a number, or something else."""
    return random.choice(NUMBERS) if random.random() < 0.6 else random.choice(THINGS)


def _method(random: Random) -> Any:
    kind: Any = getattr(methods, METHODS[random.choice([*METHODS])])
    names = [field.name for field in fields(kind)]
    settings: dict[str, Any] = {}
    if random.random() < 0.8:
        budget = random.choice((("retained_tokens", 9), ("retention_ratio", Fraction(1, 3)), ("retained_tokens", 18)))
        settings = dict([budget])
    for name in random.sample(names, min(len(names), random.choice((1, 1, 1, 2, 3, 5)))):
        settings[name] = random.choice(FITTING[name]) if name in FITTING and random.random() < 0.7 else odd(random)
    return kind(**settings)


def _functions(model: Any, given: dict[str, Any]) -> list[Callable[[Callable[[], Any]], object]]:
    """Calls of public functions, each with what it is given in some places."""
    vitcop = methods.ViTCoP(retained_tokens=9, cutoff_distance=3.0)
    early = methods.VisionZip(retained_tokens=9)
    ids, pixels = given["input_ids"], given["pixel_values"]

    def removed(make: Callable[[], Any]) -> None:
        make().remove()

    def sizes(value: Any) -> dict[str, Any]:
        return {"pinpoints": value, "tile_size": 48, "patch_size": 8}

    points = [[48, 96], [96, 48]]
    return [
        lambda draw: default_layers(draw()),
        lambda draw: default_center_ratio(draw()),
        lambda draw: feasible_range(draw(), draw(), draw()),
        lambda draw: feasible_range(32, 2, 22, vision_ratio=draw(), decay=draw()),
        lambda draw: solve_ratios(draw(), draw(), draw(), draw()),
        lambda draw: solve_ratios(Fraction(1, 3), 32, 2, 22, vision_ratio=draw(), decay=draw()),
        lambda draw: identity_plan(draw(), draw()),
        lambda draw: LanguageModelShape(*(draw() for _ in fields(LanguageModelShape))),
        lambda draw: tile_image(draw(), draw(), **sizes(points)),
        lambda draw: tile_image(96, 48, **sizes(draw())),
        lambda draw: tile_image(96, 48, pinpoints=points, tile_size=draw(), patch_size=draw()),
        lambda draw: removed(lambda: prune(model, draw())),
        lambda draw: removed(lambda: prune(draw(), vitcop)),
        lambda draw: removed(lambda: prune(model, vitcop, keep_newline=draw())),
        lambda draw: removed(lambda: prune(model, vitcop, capture=draw())),
        lambda draw: embed_images(model, early, pixel_values=draw()),
        lambda draw: embed_images(model, draw(), pixel_values=pixels),
        lambda draw: encode_image(model, draw(), pixels, method=vitcop),
        lambda draw: encode_image(model, ids[:, :-4], draw(), method=vitcop),
        lambda draw: encode_image(model, ids[:, :-4], pixels, method=draw()),
        lambda draw: ImagePrefix.load(draw(), model, vitcop),
        lambda draw: encode_image(model, ids[:, :-4], pixels, method=vitcop).inputs(draw()),
        lambda draw: encode_image(model, ids[:, :-4], pixels, method=vitcop).inputs([[draw(), 5]]),
        lambda draw: encode_image(model, ids[:, :-4], pixels, method=vitcop).inputs([[5]], pad_token_id=draw()),
    ]
