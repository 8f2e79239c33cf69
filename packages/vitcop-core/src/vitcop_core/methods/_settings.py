"""Checks of ViTCoP's settings."""

from fractions import Fraction
from typing import Any

from vitcop_core.checks import check_int, check_positive, require
from vitcop_core.shown import shown, shown_with_type


def check_ratios(ratios: object, *, whole: bool) -> None:
    """Raise unless ``ratios`` are three descending shares, and no stage is off.

    Args:
        ratios: What was given.
        whole: Whether all three stages are on.

    Raises:
        TypeError: They are not a tuple of three.
        ValueError: One is out of range or above the one before, or a stage is off.
    """
    if not isinstance(ratios, tuple) or len(ratios) != 3:
        raise TypeError(f"ratios must be a tuple (pi1, pi2, pi3), got {shown_with_type(ratios)}")
    first, second, third = (check_positive("ratios", ratio, at_most=1) for ratio in ratios)
    require(first >= second >= third, "ratios", "three ratios, none above the one before", ratios)
    require(whole, "ratios", "None when a stage is off: the ratios say what each stage keeps", ratios)


def check_cutoff(cutoff_distance: object) -> None:
    """Raise unless a cutoff distance is None, ``"auto"`` or a positive number.

    Raises:
        TypeError: It is of another type.
        ValueError: It is another text, or not positive.
    """
    if cutoff_distance is None or (isinstance(cutoff_distance, str) and cutoff_distance == "auto"):
        return
    if isinstance(cutoff_distance, str):
        raise ValueError(f"cutoff_distance must be a positive number or 'auto', got {shown(cutoff_distance)}")
    check_positive("cutoff_distance", cutoff_distance)


def check_temporal(change_share: Any, cluster_frames: Any, compat: str) -> None:
    """Raise unless the settings for video are in range.

    Raises:
        TypeError: One is not a number.
        ValueError: One is out of range, or frames are to be clustered together as the released code would, which has
            no video.
    """
    # Of a type that is no number it cannot be told whether it is 0.
    if isinstance(change_share, bool) or not isinstance(change_share, int | float | Fraction) or change_share != 0:
        check_positive("change_share", change_share, at_most=1)
    check_int("cluster_frames", cluster_frames, 1)
    require(cluster_frames == 1 or compat == "paper", "cluster_frames", "1 with compat='official'", cluster_frames)
