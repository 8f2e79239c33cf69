"""What ViTCoP may do with the frames of a clip beyond the paper: both off unless asked for.

Frames come as units. Which belong together is known on the host, from shapes; what they show stays on the device.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from vitcop_core import ops
from vitcop_core.ops._library import accumulator, row_counts
from vitcop_core.tokens import Clusters, VisionView, places_of

#: How many frames back a frame is compared with: the cost of looking grows with it, and what was seen a while ago and
#: is seen again is news to a token budget.
LOOK_BACK = 8


def novelty(features: Tensor) -> Tensor:
    """Return how much each frame of a clip differs from those before it.

    For each place of the grid the distance to the most similar of the last `LOOK_BACK` frames at that place, averaged
    over places. The first frame has none before it, and is compared with its own mean.

    Args:
        features: ``[F, m, d]`` floating.

    Returns:
        ``[F]`` float32, at least 0.
    """
    wide = features.detach().to(accumulator(features))
    first = (wide[:1] - wide[:1].mean(1, keepdim=True)).square().sum(2)
    nearest = torch.cat([first, wide.new_full((len(wide) - 1, wide.shape[1]), torch.inf)])
    for lag in range(1, min(LOOK_BACK, len(wide) - 1) + 1):
        apart = (wide[lag:] - wide[:-lag]).square().sum(2)
        nearest = torch.cat([nearest[:lag], torch.minimum(nearest[lag:], apart)])
    return nearest.sqrt().mean(1).float().nan_to_num(nan=0.0)


def share_out(weights: Tensor, amount: Tensor, room: Tensor, most: int) -> Tensor:
    """Hand out ``amount`` tokens in proportion to weights: exactly as many as there are, none beyond its room.

    By Webster's rule: token after token goes to the largest of weight / (tokens so far + 1/2), which rounds shares to
    the nearest and needs neither a second pass for what rounding left over nor a look at the result. Equal weights,
    zeros too, take turns.

    Args:
        weights: ``[F]`` float32, at least 0.
        amount: int64 of no dimension, at most the sum of ``room``.
        room: ``[F]`` int64, the most that each may get.
        most: An upper bound on ``room``.

    Returns:
        ``[F]`` int64.
    """
    turn = torch.arange(most, device=weights.device)[:, None]
    claims = weights.clamp(max=torch.finfo(torch.float32).max) / (turn.float() + 0.5)
    claims = claims.masked_fill(turn >= room, -1.0).flatten()
    order = claims.argsort(descending=True, stable=True)
    place = torch.arange(len(order), device=order.device)
    granted = torch.empty_like(order).scatter(0, order, place) < amount
    return granted.view(most, -1).sum(0)


def counts_by_change(seen: VisionView, keep: int, keeps: Tensor | None, change_share: Fraction) -> tuple[int, Tensor]:
    """Return the tokens of each frame, the sum over each clip being what it was.

    Args:
        seen: With ``frames``.
        keep: Tokens of each unit.
        keeps: ``[C]`` int64, where they differ; or None.
        change_share: Which part of a frame's tokens goes to all frames of the clip, by their novelty. Each keeps at
            least one.

    Returns:
        The most that a frame may keep, and ``[C]`` int64, what each keeps.
    """
    assert seen.frames is not None  # only then called
    patches = seen.hidden.shape[1] if seen.eligible is None else seen.eligible.shape[1]
    given = row_counts(seen.hidden, keep, keeps, None)[:, 0]
    stay = (given * (change_share.denominator - change_share.numerator)).div(
        change_share.denominator, rounding_mode="floor"
    )
    stay = torch.minimum(stay.clamp(min=1), given)
    room = row_counts(seen.hidden, patches, None, seen.lengths)[:, 0] - stay
    features, found, start = seen.key_features(), [], 0
    for stop in _stops(seen.frames):
        own = slice(start, stop)
        amount = (given[own] - stay[own]).sum()
        found.append(stay[own] + share_out(novelty(features[own]), amount, room[own], patches))
        start = stop
    return min(patches, keep * max(seen.frames)), torch.cat(found)


def spans_of(frames: Sequence[int], width: int) -> tuple[int, ...]:
    """Return the frames that are clustered together: of each clip ``width`` at a time, the last of a clip the rest."""
    return tuple(min(width, count - start) for count in frames for start in range(0, count, width))


def vic_over_spans(
    features: Tensor,
    positions: Tensor,
    clusters: int,
    cutoff_distance: float | None,
    spatial_threshold: float,
    spans: Sequence[int],
    width: int,
    *,
    lengths: Tensor | None,
    counts: Tensor | None,
) -> tuple[Clusters, float | Tensor]:
    """Cluster the tokens of several frames together, time being a third coordinate: frame / ``width``.

    A span has as many centers as its frames would have alone, so a part of the picture that stays the same leaves more
    of them to what moves.

    Args:
        features: ``[C, k, d]``, the kept tokens of each frame.
        positions: ``[C, k, 2]``.
        clusters: Centers of each frame.
        cutoff_distance: d_c; None to find one for each span (:func:`vitcop_core.ops.auto_cutoff`).
        spatial_threshold: tau.
        spans: Frames of each span, C in all.
        width: The most frames of any span that there could be; what time is measured by.
        lengths: ``[C]`` int64, tokens of each frame; None for k.
        counts: ``[C]`` int64, centers of each frame; None for ``clusters``.

    Returns:
        Labels and numbers by frame, ``[C, k]``; labels count within a span, and so do the centers, ``[spans, c]``. And
        the cutoff distance, or those that were found, ``[spans]`` float32.
    """
    tokens = features.shape[1]
    each = torch.arange(tokens, device=features.device) < row_counts(features, tokens, None, lengths)
    time = torch.cat([torch.arange(span, device=features.device) for span in spans]).float() / width
    positions = torch.cat([positions.float(), time[:, None, None].expand(-1, tokens, -1)], dim=2)
    valid, features, positions = (_joined(part, spans) for part in (each, features, positions))
    order = places_of(valid, valid.shape[1])  # the operator takes padding behind a row's own
    features, positions = (part.gather(1, order[..., None].expand_as(part)) for part in (features, positions))
    centers = _joined(row_counts(each, clusters, counts, None), spans).sum(1)
    most = clusters * max(spans)
    lengths = valid.sum(1)
    cutoff = ops.auto_cutoff(features, lengths=lengths) if cutoff_distance is None else cutoff_distance
    thresholds: dict[str, Any] = {"cutoff_distance": cutoff, "spatial_threshold": spatial_threshold}
    found = ops.vic_in_time(features, positions, most, **thresholds, lengths=lengths, counts=centers)

    def by_frame(values: Tensor) -> Tensor:
        laid = torch.empty_like(values).scatter(1, order, values)
        return torch.cat([row[: span * tokens].view(span, tokens) for row, span in zip(laid, spans, strict=True)])

    laid = Clusters(
        labels=by_frame(found.labels),
        centers=found.centers,
        density=by_frame(found.density),
        distance=by_frame(found.distance),
        importance=by_frame(found.importance),
    )
    return laid, cutoff


def _joined(values: Tensor, spans: Sequence[int]) -> Tensor:
    """Map ``[C, k, ...]`` to ``[spans, most * k, ...]``: the frames of a span one after the other, and zeros."""
    most, found, start = max(spans), [], 0
    for stop in _stops(spans):
        rows = values[start:stop]
        found.append(torch.cat([rows, rows.new_zeros((most - len(rows), *rows.shape[1:]))]).flatten(0, 1))
        start = stop
    return torch.stack(found)


def _stops(counts: Sequence[int]) -> list[int]:
    return [sum(counts[: number + 1]) for number in range(len(counts))]
