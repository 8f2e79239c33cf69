"""ViTCoP: coarse pruning by CLS attention, co-pruning by vision clusters and key norms, fine pruning by key norms."""

import warnings
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from typing import Any, Literal, Self

from torch import Tensor

from vitcop_core import ops
from vitcop_core.checks import MAX_LAYERS, check_choice, check_flag, check_int, check_positive, require
from vitcop_core.diagnostics import Diagnosis, diagnose_cutoff
from vitcop_core.methods._budget import BudgetedMethod, Number, check_layers
from vitcop_core.methods._reach import Sample, unreachable
from vitcop_core.methods._schedule import Schedule
from vitcop_core.methods._settings import check_cutoff, check_ratios, check_temporal
from vitcop_core.methods._stages import StageCounts, clusters_per_unit
from vitcop_core.methods._temporal import counts_by_change, spans_of, vic_over_spans
from vitcop_core.methods._vision import PAPER_CUTOFF, VISION_SALIENCIES, on_tower, patch_saliency, top_patches
from vitcop_core.methods.base import unit_counts
from vitcop_core.methods.official import co_prune_variant, head_mean_norm, labeled_official_vic
from vitcop_core.ops._quotas import rounded_quotas, top_up_quotas
from vitcop_core.plan import DecoderCut, Plan, VisionCut, identity_plan
from vitcop_core.schedule import DECAY, Ratios, default_center_ratio, default_layers
from vitcop_core.tokens import Clusters, DecoderView, Selection, VisionSelection, VisionView

# The choices of each switch. compat="paper" takes the first, compat="official" the second, except that the released
# code clusters the vision tower's keys as well.
_SWITCHES = {
    "vic_features": ("vit_keys", "vision_hidden"),
    "centers_round": ("ceil", "floor"),
    "knorm": ("joint", "head_mean"),
    "quota": ("top_up", "rounded"),
    "merge": ("mean", "anchor_plus_mean"),
    "counts": ("floor", "chained"),
    "deep_positions": ("kept", "reindexed"),
}

# The released code's schedule is written for this depth, whatever the model's.
_OFFICIAL_DEPTH = 32

_NO_CHANGE_SHARE = (
    "change_share will go with the next release: it costs accuracy at most budgets, and never helps beside "
    "cluster_frames; leave it out"
)


@dataclass(frozen=True)
class ViTCoP(BudgetedMethod):
    """Settings of ViTCoP. Give exactly one of ``retained_tokens``, ``retention_ratio`` and ``ratios``.

    The first two are budgets: the visual tokens at a layer's input, averaged over the layers of the language model. The
    solver turns them into the ratios of the three stages (:func:`vitcop_core.schedule.solve_ratios`).

    Attributes:
        retained_tokens: The budget in tokens, for each image.
        retention_ratio: The budget as a share of all visual tokens, in (0, 1]; 1 keeps everything. ``1 / 3`` as a
            float is read as one third.
        ratios: The shares (pi1, pi2, pi3) of the visual tokens that the stages leave, instead of a budget.
        pi1: The share that Stage I leaves, with a budget; None for 0.2 + 0.9 r (Table 8).
        layers: The layers before which Stages II and III cut, by index; None for 2 and 22 of 32, scaled to the depth.
        cutoff_distance: d_c of the clustering, on the scale of the vision tower's keys; or ``"auto"`` for the distance
            below which 2 % of a unit's pairs of tokens lie (:func:`vitcop_core.ops.auto_cutoff`). None for 8, which is
            made for the paper's tower, where the tower has a CLS token, and for ``"auto"`` where it has none.
        spatial_threshold: tau of the clustering, on a grid of side 1.
        center_ratio: alpha, cluster centers per token that Stage I kept; None for 0.3 pi1 + 0.03.
        compat: ``"paper"``, or ``"official"`` for the released code's behavior: the switches below that are None, the
            clustering's density, ties and missing parents, no cap on the number of centers, and a schedule and layers
            made for 32 layers.
        vic_features: What is clustered: the vision layer's keys, or the features it hands to the projector.
        centers_round: How alpha times the kept tokens becomes a whole number: ``"ceil"`` or ``"floor"``.
        knorm: Norm over all key-value heads (``"joint"``, Equation 4) or of their mean (``"head_mean"``).
        quota: Elites of a cluster: Equation 5 with its left-over handed out (``"top_up"``), or the released code's
            rounded shares (``"rounded"``). Both fill the budget. Equation 5 alone would not, and by how much it falls
            short depends on the image: lengths would have to be read back from the device in every prefill.
        merge: A merged token is its group's mean (``"mean"``, Equation 6) or that plus the hidden state at its place.
        counts: Tokens of a stage: the ratio times all, floored (``"floor"``), or each from the stage before, rounded
            (``"chained"``).
        deep_positions: From the deep cut on, tokens carry their position ids (``"kept"``) or get new ones
            (``"reindexed"``).
        stage_one: False for no Stage I (Table 4): all tokens enter, and Stages II and III make up for it.
        stage_three: False for no Stage III (Table 4): Stage II keeps fewer, to the end.
        saliency: What ranks tokens inside the language model: ``"key_norm"``, or ``"attention"`` of the last prompt
            token in the layer before the cut ("w/o K-norm guidance" in Table 4).
        clustering: False for Stage II by saliency alone, without clusters ("w/o attention guidance" in Table 4).
        vision_saliency: What Stage I ranks patches by: the CLS token's attention (``"cls"``, as in the paper), or the
            attention that a patch receives from all tokens of its image (``"received"``). ``"auto"`` is the first where
            the vision tower has a CLS token, and the second where it has none.
        change_share: Deprecated. Of video, the part of Stage I's tokens that goes to frames by how much they differ
            from those before them: 0 (all frames alike, as in the paper) to 1. A clip keeps as many tokens either way.
        cluster_frames: Of video, how many frames are clustered together, their time being a third coordinate; 1 for
            each by itself, as in the paper.

    Raises:
        TypeError: A setting is of the wrong type.
        ValueError: A setting is out of range, or two contradict each other.
    """

    ratios: tuple[Number, Number, Number] | None = None
    pi1: Number | None = None
    layers: tuple[int, int] | None = None
    cutoff_distance: float | Literal["auto"] | None = None
    spatial_threshold: float = 0.6
    center_ratio: float | Fraction | None = None
    compat: Literal["paper", "official"] = "paper"
    vic_features: Literal["vit_keys", "vision_hidden"] | None = None
    centers_round: Literal["ceil", "floor"] | None = None
    knorm: Literal["joint", "head_mean"] | None = None
    quota: Literal["top_up", "rounded"] | None = None
    merge: Literal["mean", "anchor_plus_mean"] | None = None
    counts: Literal["floor", "chained"] | None = None
    deep_positions: Literal["kept", "reindexed"] | None = None
    stage_one: bool = True
    stage_three: bool = True
    saliency: Literal["key_norm", "attention"] = "key_norm"
    clustering: bool = True
    change_share: Number = 0
    cluster_frames: int = 1
    vision_saliency: Literal["auto", "cls", "received"] = "auto"

    def __post_init__(self) -> None:
        """Check the settings."""
        self.check_budget("ratios")
        for name in ("stage_one", "stage_three", "clustering"):
            check_flag(name, getattr(self, name))
        if self.pi1 is not None:
            check_positive("pi1", self.pi1, at_most=1)
            require(self.ratios is None and self.stage_one, "pi1", "None with ratios or without Stage I", self.pi1)
        if self.ratios is not None:
            check_ratios(self.ratios, whole=self.stage_one and self.stage_three)
        if self.layers is not None:
            check_layers(self.layers, is_pair=True)
        check_cutoff(self.cutoff_distance)
        check_positive("spatial_threshold", self.spatial_threshold)
        if self.center_ratio is not None:
            check_positive("center_ratio", self.center_ratio, at_most=1)
        check_choice("compat", self.compat, ("paper", "official"))
        check_choice("saliency", self.saliency, ("key_norm", "attention"))
        check_choice("vision_saliency", self.vision_saliency, VISION_SALIENCIES)
        check_temporal(self.change_share, self.cluster_frames, self.compat)
        if self.change_share:
            warnings.warn(_NO_CHANGE_SHARE, DeprecationWarning, stacklevel=3)  # of whoever makes the method
        for name, choices in _SWITCHES.items():
            if getattr(self, name) is not None:
                check_choice(name, getattr(self, name), choices)

    @property
    def cuts_depend_on_question(self) -> bool:
        """Only with ``saliency="attention"``: keys and clusters of an image are settled by what precedes its end."""
        return self.saliency == "attention"

    @property
    def needs_cls(self) -> bool:
        """Only with ``vision_saliency="cls"``."""
        return self.vision_saliency == "cls"

    def for_tower(self, *, has_cls: bool) -> Self:
        """Return it with the cutoff distance and the saliency of such a tower; see :meth:`Method.for_tower`."""
        cutoff, saliency = on_tower(self.cutoff_distance, self.vision_saliency, has_cls=has_cls)
        found = copy(self)
        # Not replace(): what there is to warn of was said when it was made.
        object.__setattr__(found, "cutoff_distance", cutoff)
        object.__setattr__(found, "vision_saliency", saliency)
        return found

    def plan(self, num_layers: int, visual_tokens: int | Sequence[int], *, images: int = 1) -> Plan:
        """Return the cuts of one sample; see :meth:`Method.plan`.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: The budget is for more tokens than there are, cannot be met with these layers (the message has
                the range), or would leave a stage without tokens; or a cut layer is beyond the model.
        """
        num_layers = check_int("num_layers", num_layers, 1, MAX_LAYERS)
        units, images = unit_counts(visual_tokens, images)
        if self.layers is not None:
            require(self.layers[1] < num_layers, "layers", f"below the model's {num_layers} layers", self.layers)
        budget = self.budget(sum(units), images)
        if budget == sum(units) or (self.ratios is not None and self.ratios[2] == 1):
            return identity_plan(num_layers, units)
        schedule = self._schedule(num_layers)
        first, deep = schedule.first, schedule.deep
        ratios = self._solve(schedule, budget, units, images)
        counts = schedule.counts(ratios, units)
        entry, cuts = sum(counts.units), list[DecoderCut]()
        if counts.shallow < entry:
            cuts.append(DecoderCut(first, counts.shallow, "co_prune" if self.clustering else "top_tokens"))
        if counts.deep < counts.shallow:
            reindex = self.switch("deep_positions") == "reindexed"
            cuts.append(DecoderCut(deep, counts.deep, "top_tokens", reindex_positions=reindex))
        clusters = (0,) * len(units)
        if any(self.needs_labels(cut) for cut in cuts):
            clusters = self._clusters(ratios, counts)
        vision = VisionCut(counts.units, clusters) if counts.units != units or any(clusters) else None
        return Plan(num_layers=num_layers, units=units, vision=vision, decoder=tuple(cuts))

    def pool(self, whole: Plan, images: Sequence[Plan]) -> Plan:
        """Return the plan of a sample of several images; see :meth:`Method.pool`.

        Images may enter with more tokens together than a sample of all units would. Stage II then leaves as many as
        that, also where such a sample would have no Stage II, and fewer where the average were above the budget.
        """
        entry = sum(image.entry_tokens for image in images)
        if entry <= whole.entry_tokens:
            return super().pool(whole, images)
        first, budget = self._schedule(whole.num_layers).first, self.budget(whole.visual_tokens, len(images))
        allowed = whole.average_tokens if budget is None else max(budget, whole.average_tokens)
        if all(cut.layer != first for cut in whole.decoder):
            cut = DecoderCut(first, whole.entry_tokens, "co_prune" if self.clustering else "top_tokens")
            whole = replace(whole, vision=None, decoder=(cut, *whole.decoder))
        pooled = super().pool(whole, images)
        over = pooled.average_tokens - allowed
        if budget is None or over <= 0 or not pooled.decoder:
            return pooled
        cut, *rest = pooled.decoder
        span = (rest[0].layer if rest else pooled.num_layers) - cut.layer
        fewer = max(cut.keep - ceil(over * pooled.num_layers / span), rest[0].keep + 1 if rest else 1)
        return replace(pooled, decoder=(replace(cut, keep=fewer), *rest))

    def needs_labels(self, cut: DecoderCut) -> bool:
        """Return whether the cut co-prunes."""
        return cut.stage == "co_prune"

    def needs_attention(self, cut: DecoderCut) -> bool:
        """Return whether the saliency is ``"attention"``."""
        return self.saliency == "attention"

    def cut_title(self, plan: Plan, number: int) -> str:
        """Return the paper's names of the stages; see :meth:`Method.cut_title`."""
        if number == 0:
            return "Stage I"
        is_first = number == 1 and (len(plan.decoder) > 1 or self.needs_labels(plan.decoder[0]))
        return "Stage II" if is_first else "Stage III"

    def diagnose(self, keys: Tensor) -> Diagnosis | None:
        """Return how a given cutoff distance fits the scale of the keys, where they are what is clustered."""
        cutoff = PAPER_CUTOFF if self.cutoff_distance is None else self.cutoff_distance
        if self.switch("vic_features") != "vit_keys" or cutoff == "auto":
            return None
        return diagnose_cutoff(keys, cutoff)

    def cut_vision(
        self,
        seen: VisionView,
        keep: int,
        clusters: int,
        keeps: Tensor | None = None,
        cluster_counts: Tensor | None = None,
    ) -> VisionSelection:
        """Keep the tokens with most attention (Stage I, :attr:`vision_saliency`), and cluster them for Stage II.

        See :meth:`Method.cut_vision`.

        With ``compat="official"`` the last of the clusters is the one for tokens that the released code leaves without
        a label; it may be empty, and has no center.
        """
        saliency = patch_saliency(seen, self.vision_saliency)
        counts = spans = None
        if self.change_share and seen.frames is not None:
            keep, counts = counts_by_change(seen, keep, keeps, check_positive("change_share", self.change_share))
            keeps = counts
        if self.cluster_frames > 1 and seen.frames is not None and clusters:
            spans = spans_of(seen.frames, self.cluster_frames)
        index = top_patches(seen, saliency, keep, keeps)
        found, cutoff = None, None
        if clusters:
            found, cutoff = self._cluster(seen, index, clusters, keeps, cluster_counts, spans)
        return VisionSelection(index, found, saliency, counts=counts, spans=spans, cutoff=cutoff)

    def cut_decoder(self, cut: DecoderCut, seen: DecoderView, keeps: Tensor | None = None) -> Selection:
        """Apply Stage II (``co_prune``), or Stage III and a Stage II without clusters (``top_tokens``).

        See :meth:`Method.cut_decoder`.

        Raises:
            ValueError: The cut is a co-pruning and there are no labels.
        """
        norms = self._norms(seen)
        if cut.stage == "top_tokens":
            return Selection(ops.top_tokens(norms, cut.keep, smallest=True, lengths=seen.lengths, counts=keeps))
        if seen.labels is None:
            raise ValueError("labels must be given for a co_prune cut, got None")
        what = (seen.hidden, seen.labels, norms, cut.keep, seen.num_clusters)
        rule = top_up_quotas if self.switch("quota") == "top_up" else rounded_quotas
        add_anchor = self.switch("merge") == "anchor_plus_mean"
        if rule is top_up_quotas and not add_anchor:
            return ops.co_prune(*what, lengths=seen.lengths, counts=keeps)
        return co_prune_variant(*what, lengths=seen.lengths, counts=keeps, quota_rule=rule, add_anchor=add_anchor)

    def switch(self, name: str) -> str:
        """Return the value of a switch, taken from ``compat`` where it is None.

        Args:
            name: ``vic_features``, ``centers_round``, ``knorm``, ``quota``, ``merge``, ``counts`` or
                ``deep_positions``.
        """
        value: str | None = getattr(self, name)
        return value if value is not None else _SWITCHES[name][self.compat == "official" and name != "vic_features"]

    def _schedule(self, num_layers: int) -> Schedule:
        """Return how budgets are solved on a model.

        The released code's is made for 32 layers, with cuts before 2 and 22, on any model. Where its layers do not
        exist it cannot run at all, and the model's own depth is the only sensible one.
        """
        deep = default_layers(_OFFICIAL_DEPTH)[1] if self.layers is None else self.layers[1]
        is_official = self.compat == "official" and deep < min(num_layers, _OFFICIAL_DEPTH)
        depth = _OFFICIAL_DEPTH if is_official else num_layers
        first, deep = default_layers(depth) if self.layers is None else self.layers
        vision_ratio = None if self.pi1 is None else check_positive("pi1", self.pi1)
        decay = DECAY if self.stage_three else Fraction(1)
        chained = self.switch("counts") == "chained"
        return Schedule(depth, first, deep, vision_ratio if self.stage_one else Fraction(1), decay, chained)

    def _solve(self, schedule: Schedule, budget: Fraction | None, units: tuple[int, ...], images: int) -> Ratios:
        if self.ratios is not None:
            first, second, third = (check_positive("ratios", ratio) for ratio in self.ratios)
            counts = schedule.counts(Ratios(first, second, third), units)
            expected = f"such that a token is left in every stage and every unit of {sum(units)} tokens"
            require(counts.leave_something, "ratios", expected, self.ratios)
            return Ratios(first, second, third)
        assert budget is not None  # or there would be ratios
        retention, reach = budget / sum(units), schedule.reach(units)
        if not reach.fits(retention):
            raise unreachable(self, Sample(sum(units), images), reach)
        return schedule.ratios(retention)

    def _clusters(self, ratios: Ratios, counts: StageCounts) -> tuple[int, ...]:
        alpha = self.center_ratio
        center_ratio = default_center_ratio(ratios.vision) if alpha is None else check_positive("center_ratio", alpha)
        round_up = self.switch("centers_round") == "ceil"
        if self.compat == "paper":
            return clusters_per_unit(center_ratio, counts, round_up=round_up, capped=True)
        return tuple(1 + n for n in clusters_per_unit(center_ratio, counts, round_up=round_up, capped=False))

    def _cluster(
        self,
        seen: VisionView,
        index: Tensor,
        clusters: int,
        lengths: Tensor | None,
        counts: Tensor | None,
        spans: tuple[int, ...] | None,
    ) -> tuple[Clusters, float | Tensor]:
        """Return the clusters, and the cutoff distance that they were found by, or one for each unit or span."""
        features = seen.key_features() if self.switch("vic_features") == "vit_keys" else seen.hidden
        features, positions = ops.gather_tokens([features.detach(), seen.positions], index)
        what, near = (features, positions, clusters), self.spatial_threshold
        given, _ = on_tower(self.cutoff_distance, self.vision_saliency, has_cls=seen.query_cls is not None)
        if spans is not None and self.compat == "paper":
            own = None if given == "auto" else given
            return vic_over_spans(*what, own, near, spans, self.cluster_frames, lengths=lengths, counts=counts)
        cutoff = ops.auto_cutoff(features, lengths=lengths) if given == "auto" else given
        if self.compat == "official":
            return labeled_official_vic(*what, cutoff, near, lengths=lengths, counts=counts), cutoff
        thresholds: dict[str, Any] = {"cutoff_distance": cutoff, "spatial_threshold": near}
        return ops.vic(*what, **thresholds, lengths=lengths, counts=counts), cutoff

    def _norms(self, seen: DecoderView) -> Tensor:
        """Return ``[B, n]``, the smaller the more important."""
        if self.saliency == "attention":
            return -seen.attention().detach().float()
        return ops.key_norm(seen.keys) if self.switch("knorm") == "joint" else head_mean_norm(seen.keys)
