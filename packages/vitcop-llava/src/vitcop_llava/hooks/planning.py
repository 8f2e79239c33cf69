"""Plans for images and rows: what each keeps, from its size alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial

from vitcop_core import DecoderCut, Method, Plan
from vitcop_llava.families import Parts
from vitcop_llava.families.tiling import Tiling
from vitcop_llava.hooks.kept import PlannedImage

_LARGER = 64
"""How many times the tokens of a plain image a budget is tried on where images may have any number."""
_LENGTHS = (1, 8, 32)
"""Frames of the clips that a budget is tried on before there are any."""
_SIDES = (1, 4, 16, 128)
"""Likewise rows and columns of tokens of images of any size."""
_KEPT = 256
"""Plans that are kept."""


class BudgetError(ValueError):
    """A budget that cannot be met for an image of that size."""


class Planner:
    """Asks the method for the plans of images and of rows of images.

    Args:
        method: Makes the plans.
        num_layers: Decoder layers.
        keep_newlines: Whether the newline at the end of each line of tiles stays, where the line has patches at all.
    """

    def __init__(self, method: Method, num_layers: int, *, keep_newlines: bool) -> None:
        self._method, self._num_layers, self._keep_newlines = method, num_layers, keep_newlines
        # Plans are exact fractions, and take longer than cutting does: those of the sizes seen are kept.
        self._image = lru_cache(_KEPT)(self._plan_image)
        self._plan = lru_cache(_KEPT)(partial(method.plan, num_layers))

    def keeps_all(self, parts: Parts) -> bool:
        """Return whether the budget keeps every token, whatever comes.

        A model that takes images of several sizes, or clips, is asked for several: a number of tokens may be all of
        one and not of another, or too few for one and not for another.

        Raises:
            ValueError: The budget cannot be met for anything that the model takes.
        """
        tilings, found, errors = [parts.tiling], list[bool](), list[ValueError]()
        if parts.anyres is not None:
            tilings += [parts.anyres.tile(*point) for point in parts.anyres.pinpoints]
            tilings += [parts.anyres.untiled] * parts.anyres.tiles_one
        if parts.scored is None:  # its images may have any number of tokens
            tilings.append(Tiling((1, parts.tiling.tokens * _LARGER)))
        if parts.squares is not None:
            tilings += [Tiling((side, side)) for side in _SIDES]
        if parts.video is not None:
            tilings += [parts.video.clip(frames) for frames in _LENGTHS]
        for tiling in tilings:
            try:
                found.append(self._plan(tiling.units).is_identity)
            except ValueError as error:
                errors.append(error)
        if not found:
            raise errors[0]
        return all(found) and not errors

    def images(
        self, tilings: Sequence[Tiling], sizes: Sequence[tuple[int, int]] | None = None
    ) -> tuple[PlannedImage, ...]:
        """Return the plan of each image or clip by itself.

        Args:
            tilings: The images or clips.
            sizes: The images' heights and widths, for the message of an error.

        Raises:
            BudgetError: The budget does not fit one of them.
        """
        found: dict[Tiling, PlannedImage] = {}
        for number, tiling in enumerate(tilings):
            if tiling not in found:
                try:
                    found[tiling] = self._image(tiling)
                except ValueError as error:
                    what = "an image of {} x {} pixels".format(*sizes[number]) if sizes else "an image"
                    if tiling.frames:
                        what = f"a clip of {tiling.frames} frames"
                    raise BudgetError(f"{what} with {tiling.tokens} visual tokens: {error}") from error
        return tuple(found[tiling] for tiling in tilings)

    def _plan_image(self, tiling: Tiling) -> PlannedImage:
        plan = self._plan(tiling.units)
        has_patches = tiling.ending or tiling.window[2] < tiling.window[3]
        stay = plan.is_identity or (self._keep_newlines and has_patches)
        return PlannedImage(tiling, plan, tiling.newlines if stay else 0)

    def row(self, images: Sequence[PlannedImage]) -> Plan | None:
        """Return the plan of a row: the images enter as they would alone, and are cut together; None without images."""
        if len(images) < 2:
            return images[0].plan if images else None
        whole = self._plan(tuple(unit for image in images for unit in image.tiling.units), images=len(images))
        return self._method.pool(whole, [image.plan for image in images])

    def needs_labels(self, plans: Sequence[Plan | None]) -> bool:
        """Return whether a cut of these rows reads clusters."""
        return any(map(self._method.needs_labels, _cuts(plans)))

    def needs_prompt(self, plans: Sequence[Plan | None]) -> bool:
        """Return whether a cut of these rows reads the prompt's embeddings."""
        return any(map(self._method.needs_prompt, _cuts(plans)))


def _cuts(plans: Sequence[Plan | None]) -> Iterator[DecoderCut]:
    return (cut for plan in plans if plan is not None for cut in plan.decoder)
