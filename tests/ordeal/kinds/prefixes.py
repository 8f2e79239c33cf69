"""Prefix files: damaged ones, which must be refused, and ones that were sealed again over content that is odd."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from ordeal.models import pictures, prompt, tiny_model
from ordeal.mutate import mutated, mutated_json
from ordeal.trials import RefusedError, Trial, demand, documented
from vitcop_llava import FeatureScaleWarning, ImagePrefix, VisionZip, ViTCoP, encode_image, prune
from vitcop_llava.prefix.sealed_file import DTYPES, read_header, read_tensors, write_sealed
from vitcop_llava.prefix.store import FORMAT

METHODS = (ViTCoP(retained_tokens=9, cutoff_distance=3.0), VisionZip(retained_tokens=18))


def prepare(folder: Path) -> Trial:
    """Writes two prefixes; a trial damages one as bytes, or changes what it holds and seals it again."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore", FeatureScaleWarning)
    model, good = tiny_model(), []
    for number, method in enumerate(METHODS):
        path = folder / f"good-{number}"
        encode_image(model, prompt(3, "image", 2), pictures(), method=method).save(path)
        with path.open("rb") as stream:
            header = read_header(stream)
            good.append((method, path.read_bytes(), json.loads(header.metadata[FORMAT]), read_tensors(stream, header)))
    path = folder / "case"

    def trial(random: Random) -> None:
        method, data, content, tensors = random.choice(good)
        other = random.choice(METHODS) if random.random() < 0.03 else method
        if random.random() < 0.5:
            path.write_bytes(changed := mutated(data, random, random.choice(good)[1]))
            with documented(ValueError):
                ImagePrefix.load(path, model, other)
            demand(changed == data, "a file was accepted that is not what was written")
            raise RefusedError  # nothing was damaged
        _write_other(path, content, tensors, random)
        with documented(ValueError):
            prefix = ImagePrefix.load(path, model, other)
        with prune(model, other):
            asked = model.generate(
                **prefix.inputs([[5, 6, 7], [8]]), max_new_tokens=2, output_logits=True, return_dict_in_generate=True
            )
        demand(all(bool(torch.isfinite(each).any()) for each in asked.logits), "logits that are not finite")

    return trial


def _write_other(path: Path, content: dict[str, Any], tensors: dict[str, Tensor], random: Random) -> None:
    """Seals content that was changed: the digest is right, whatever it holds."""
    content = {name: value for name, value in content.items() if name != "sha256"}
    tensors = dict(tensors)
    if random.random() < 0.6:
        changed = mutated_json(content, random)
        content = changed if isinstance(changed, dict) else {"version": changed}
    else:
        for _ in range(random.choice((1, 1, 2))):
            _change(tensors, random)
    try:
        write_sealed(path, tensors, FORMAT, content)
    except (OSError, ValueError, TypeError, UnicodeError):  # what cannot be written is not handed in
        raise RefusedError from None


def _change(tensors: dict[str, Tensor], random: Random) -> None:
    name = random.choice([*tensors])
    tensor, what = tensors[name], random.randrange(7)
    if what == 0:
        del tensors[name]
    elif what == 1:
        tensors[name] = tensor.to(random.choice([*DTYPES]))
    elif what == 2:
        tensors[name] = tensor[..., : random.choice((0, 1, -1))].contiguous()
    elif what == 3:
        tensors[name] = torch.cat([tensor, tensor], -1)
    elif what == 4:
        tensors[name] = tensor.flip(-1)
    elif what == 5:
        tensors[random.choice((f"keys.{random.randrange(6)}", "columns.7", "columns.0", "more"))] = tensor
    elif tensor.dtype == torch.int64:
        changed = tensor.clone()
        changed.view(-1)[random.randrange(len(changed))] = random.choice((-1, 0, 99, 100, 2**40, -(2**63)))
        tensors[name] = changed
