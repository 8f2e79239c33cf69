"""The golden cases of vitcop-core, as inputs of the operators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from kernel_inputs import Arguments, Case, Draw

GOLDEN = Path(__file__).parents[3] / "vitcop-core" / "tests" / "golden"
NORMATIVE = ("n00", "n02", "n04", "n06", "n20", "n30", "n41", "n50", "n55", "n57", "n58")

ONE = (torch.float32,)


def _golden(name: str) -> list[Case]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as stored:
        case = {key: stored[key] for key in stored.files}

    def crop(number: int) -> Arguments:
        members = np.flatnonzero(case["crop_ids"] == number)
        features = torch.from_numpy(case["features"][members]).float()[None]
        positions = torch.from_numpy(case["positions"][members]).float()[None]
        count = int((case["centers"][:, None] == members[None]).sum())
        return features, positions, count, float(case["d_c"]), float(case["tau"])

    def pruned(_: Draw) -> Arguments:
        names = torch.from_numpy(np.unique(case["labels"], return_inverse=True)[1])[None]
        norms = torch.from_numpy(case["k_norms"]).float()[None]
        hidden = torch.from_numpy(case["hidden"]).float()[None]
        return hidden, names, norms, int(case["budget"]), int(names.max()) + 1

    crops = [int(number) for number in np.unique(case["crop_ids"])]
    keys = torch.from_numpy(case["k_states"])[None]
    return [
        *(Case("vic", f"golden {name}, unit {i}", lambda _, i=i: crop(i), ONE) for i in crops),  # type: ignore[misc]
        Case("key_norm", f"golden {name}", lambda _: (keys,), ONE),
        Case("co_prune", f"golden {name}", pruned, ONE),
    ]


def _golden_attention(_: Draw) -> Arguments:
    with np.load(GOLDEN / "x_stage1.npz", allow_pickle=False) as case:
        attention = torch.from_numpy(case["cls_attention"])
    # Keys whose scores are the logarithms of the attention: the softmax gives the attention back.
    return torch.ones(1, len(attention), 1), attention.double().log().float().unsqueeze(-1)[None], 1.0


GOLDEN_CASES = [
    *(case for name in NORMATIVE for case in _golden(name)),
    Case("cls_saliency", "golden x_stage1", _golden_attention, ONE),
]
