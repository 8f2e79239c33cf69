"""Every field of the golden cases."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitcop_core import Clusters, Selection, ops
from vitcop_core.methods._stages import StageCounts, clusters_per_unit
from vitcop_core.methods.official import co_prune_variant, head_mean_norm, official_vic
from vitcop_core.ops._quotas import rounded_quotas

Array = NDArray[Any]
Case = dict[str, Array]

NORMATIVE = ("n00", "n02", "n04", "n06", "n20", "n30", "n41", "n50", "n55", "n57", "n58")
OFFICIAL = ("o00", "o05")


def cluster(case: Case) -> tuple[Clusters, Array]:
    """Clusters over all crops, labels and centers as the case has them, and the labels for co-pruning."""
    is_official = str(case["mode"]) == "official"
    found = []
    offset = 0
    for crop in np.unique(case["crop_ids"]):
        members = np.flatnonzero(case["crop_ids"] == crop)
        features = torch.from_numpy(case["features"][members])[None]
        positions = torch.from_numpy(case["positions"][members]).float()[None]
        count = num_centers(case, len(members))
        thresholds = float(case["d_c"]), float(case["tau"])
        if is_official:
            part = official_vic(features, positions, count, *thresholds)
        else:
            part = ops.vic(features, positions, count, cutoff_distance=thresholds[0], spatial_threshold=thresholds[1])
        labels = part.labels + offset
        found.append(part._replace(labels=labels, centers=torch.from_numpy(members)[part.centers]))
        offset += len(members) if is_official else count
    clusters = Clusters(*(torch.cat(parts, 1) for parts in zip(*found, strict=True)))
    return clusters, np.unique(case["labels"], return_inverse=True)[1]


def num_centers(case: Case, tokens: int) -> int:
    is_official = str(case["mode"]) == "official"
    alpha = Fraction(float(case["alpha"])).limit_denominator(1000)
    counts = StageCounts((tokens,), tokens, tokens)
    return clusters_per_unit(alpha, counts, round_up=not is_official, capped=False)[0]


def prune(case: Case, norms: Tensor, labels: Array) -> Selection:
    hidden = torch.from_numpy(case["hidden"])[None]
    budget, clusters = int(case["budget"]), int(labels.max()) + 1
    dense = torch.from_numpy(labels)[None]
    if str(case["mode"]) == "official":
        return co_prune_variant(
            hidden,
            dense,
            norms,
            budget,
            clusters,
            lengths=None,
            counts=None,
            quota_rule=rounded_quotas,
            add_anchor=True,
        )
    return ops.co_prune(hidden, dense, norms, budget, clusters)


@pytest.mark.parametrize("name", NORMATIVE + OFFICIAL)
def test_golden_clusters_match(golden: Callable[[str], Case], name: str) -> None:
    case = golden(name)
    clusters, _ = cluster(case)
    np.testing.assert_array_equal(clusters.labels[0], case["labels"])
    np.testing.assert_array_equal(clusters.centers[0], case["centers"])
    np.testing.assert_allclose(clusters.density[0], case["rho"], rtol=1e-5)
    # atol: the released code's distances start at 1e-4, the normative ones at 0 for duplicates.
    np.testing.assert_allclose(clusters.distance[0], case["delta"], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(clusters.importance[0], case["gamma"], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", NORMATIVE + OFFICIAL)
def test_golden_norms_match(golden: Callable[[str], Case], name: str) -> None:
    case = golden(name)
    keys = torch.from_numpy(case["k_states"])[None]
    norms = head_mean_norm(keys) if name in OFFICIAL else ops.key_norm(keys)
    np.testing.assert_allclose(norms[0], case["k_norms"], rtol=1e-5)


@pytest.mark.parametrize("name", NORMATIVE + OFFICIAL)
def test_golden_outputs_match(golden: Callable[[str], Case], name: str) -> None:
    case = golden(name)
    keys = torch.from_numpy(case["k_states"])[None]
    _, labels = cluster(case)
    norms = head_mean_norm(keys) if name in OFFICIAL else ops.key_norm(keys)
    found = prune(case, norms, labels)
    assert found.hidden is not None
    assert found.is_merged is not None
    assert found.slot is not None
    index, is_merged, slot = (part[0].numpy() for part in (found.index, found.is_merged, found.slot))
    np.testing.assert_array_equal(index, case["order"])
    np.testing.assert_array_equal(is_merged, case["is_merged"])
    np.testing.assert_allclose(found.hidden[0], case["out"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(index[~is_merged], case["elites"])
    np.testing.assert_array_equal(np.sort(index[is_merged]), np.sort(case["anchors"]))
    went_to = np.where(is_merged[slot], index[slot], -1)
    expected = np.where(case["group_of"] < 0, -1, case["anchors"][case["group_of"]])
    np.testing.assert_array_equal(went_to, expected)
    if len(case["quotas"]):
        np.testing.assert_array_equal(
            np.bincount(labels[case["elites"]], minlength=len(case["quotas"])), case["quotas"]
        )


def test_golden_stage_one_matches(golden: Callable[[str], Case]) -> None:
    case = golden("x_stage1")
    attention = torch.from_numpy(case["cls_attention"])
    # Keys whose scores are the logarithms of the attention: the softmax gives the attention back.
    keys = attention.double().log().float().unsqueeze(-1)[None]
    saliency = ops.cls_saliency(torch.ones(1, len(attention), 1), keys, 1.0)[:, 1:]
    np.testing.assert_allclose(saliency[0], case["scores"], rtol=1e-5)
    summed = attention.double().sum(0)[1:].float()[None]
    for budget in (192, 128, 64, 32):
        kept = case[f"kept_{budget}"]
        np.testing.assert_array_equal(ops.top_tokens(summed, len(kept))[0], kept)
        np.testing.assert_array_equal(ops.top_tokens(saliency, len(kept))[0], kept)
