"""What the methods that ViTCoP is compared with share: equal budgets, and layers in proportion to the depth."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from vitcop_core.checks import MAX_LAYERS, check_int, check_positive, plain_fields, require
from vitcop_core.methods._reach import Reach, Sample, unreachable
from vitcop_core.methods.base import Method
from vitcop_core.plan import DecoderCut
from vitcop_core.shown import shown, shown_with_type

Number = int | float | Fraction

# The depth that the published layers are for, and the visual tokens that the published counts are for.
DEPTH, TOKENS = 32, 576


@dataclass(frozen=True)
class BudgetedMethod(Method):
    """A method whose settings are solved for a budget, unless they are given.

    The budget is the visual tokens at a layer's input, averaged over the layers of the language model, as everywhere.
    A plan never exceeds it, and :attr:`Plan.average_tokens` says how near it comes. (ViTCoP's may, with
    ``compat="official"``: its schedule is made for 32 layers.)

    Attributes:
        retained_tokens: The budget in tokens, for each image.
        retention_ratio: The budget as a share of all visual tokens, in (0, 1]; 1 keeps everything. ``1 / 3`` as a
            float is read as one third.

    Raises:
        TypeError: A budget is not a number.
        ValueError: A budget is out of range.
    """

    retained_tokens: int | float | None = None
    retention_ratio: Number | None = None

    def check_budget(self, *others: str) -> None:
        """Check the two, and that exactly one of them and of ``others`` is given; first of all make numbers plain.

        Raises:
            TypeError: A budget is not a number.
            ValueError: None is given, or several, or one is out of range.
        """
        plain_fields(self)
        names = ("retained_tokens", "retention_ratio", *others)
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            choices = f"{', '.join(names[:-1])} or {names[-1]}"
            raise ValueError(f"{choices} must be given, and one alone, got {' and '.join(given) or 'none'}")
        if self.retained_tokens is not None:
            check_positive("retained_tokens", self.retained_tokens)
        if self.retention_ratio is not None:
            check_positive("retention_ratio", self.retention_ratio, at_most=1)

    def budget(self, tokens: int, images: int) -> Fraction | None:
        """Return the budget of a sample in tokens; None where the settings are given instead.

        Args:
            tokens: Its visual tokens.
            images: Its images.

        Raises:
            ValueError: The budget is for more tokens than there are.
        """
        if self.retention_ratio is not None:
            return check_positive("retention_ratio", self.retention_ratio) * tokens
        if self.retained_tokens is None:
            return None
        budget = check_positive("retained_tokens", self.retained_tokens) * images
        most = f"at most the {Sample(tokens, images).text} visual tokens of an image"
        require(budget <= tokens, "retained_tokens", most, self.retained_tokens)
        return budget


def share_out(method: BudgetedMethod, units: Sequence[int], images: int, budget: Fraction) -> tuple[int, ...]:
    """Return the tokens of each unit: of the budget what its own share of the sample's tokens is, rounded down.

    Args:
        method: Whose budget it is, for the message of an error.
        units: Visual tokens of each unit.
        images: How many images they make up.
        budget: Of all units together.

    Raises:
        ValueError: Some unit would keep nothing (the message has the least budget that leaves each a token).
    """
    tokens = sum(units)
    kept = tuple(math.floor(budget * unit / tokens) for unit in units)
    if min(kept) < 1:
        least = Fraction(1, min(units))
        raise unreachable(method, Sample(tokens, images), Reach(lambda share: share >= least))
    return kept


def check_layers(layers: object, *, is_pair: bool = False) -> None:
    """Raise unless ``layers`` are indices in ascending order, none of them that of the first layer.

    A cut may read the keys of the layer before, and the first layer has none.

    Args:
        layers: What was given.
        is_pair: Whether there have to be two.

    Raises:
        TypeError: They are not a tuple of integers, or of two.
        ValueError: One is not positive, they do not ascend, or there are none.
    """
    two = "two " if is_pair else ""
    if not isinstance(layers, tuple) or (is_pair and len(layers) != 2):
        raise TypeError(f"layers must be a tuple of {two}integers, got {shown_with_type(layers)}")
    for layer in layers:
        check_int("layers", layer, 1, MAX_LAYERS)
    ascends = len(layers) > 0 and all(a < b for a, b in pairwise(layers))
    require(ascends, "layers", f"{two}layers in ascending order", layers)


def cut_layers(given: Sequence[int] | None, published: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Return the layers to cut before.

    Args:
        given: The user's choice, taken as it is; None for the published ones.
        published: Indices for 32 layers. For n layers ``floor(l n / 32 + 1 / 2)``, at least 1 and each after the one
            before.
        num_layers: Layers of the language model.

    Raises:
        ValueError: The model has no such layer.
    """
    if given is None:
        found: list[int] = []
        for layer in published:
            after = found[-1] + 1 if found else 1
            found.append(max((layer * num_layers + DEPTH // 2) // DEPTH, after))
    else:
        found = list(given)
    if found[-1] >= num_layers:
        raise ValueError(f"layers must be below the model's {num_layers} layers, got {shown(tuple(found))}")
    return tuple(found)


def average(num_layers: int, tokens: int, cuts: Sequence[tuple[int, Number]]) -> Fraction:
    """Return the tokens at a layer's input, averaged over the layers.

    Args:
        num_layers: Layers of the language model.
        tokens: What enters.
        cuts: The layer of each cut, ascending, and what it leaves, which need not be whole.
    """
    total, left, start = Fraction(0), Fraction(tokens), 0
    for layer, after in cuts:
        total += left * (layer - start)
        left, start = Fraction(after), layer
    return (total + left * (num_layers - start)) / num_layers


def falling_cuts(
    layers: Sequence[int], counts: Sequence[int], tokens: int, stage: str, *, pack: bool
) -> tuple[DecoderCut, ...]:
    """Return cuts of one kind, without those that would keep everything.

    Args:
        layers: Where.
        counts: What each leaves at most.
        tokens: What enters.
        stage: The method's word for such a cut.
        pack: Whether positions are packed at each.
    """
    cuts: list[DecoderCut] = []
    for layer, count in zip(layers, counts, strict=True):
        if count < tokens:
            cuts.append(DecoderCut(layer, count, stage, pack_positions=pack))
            tokens = count
    return tuple(cuts)


def largest(fits: Callable[[int], bool], most: int) -> int | None:
    """Return the largest number up to ``most`` that fits, where what is below one that fits does too; None if 0 does
    not.
    """
    if not fits(0):
        return None
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def check_counts(counts: object, *names: str) -> None:
    """Raise unless ``counts`` are positive integers, as many as ``names``, which say what they are.

    Raises:
        TypeError: They are not a tuple of so many integers.
        ValueError: One is not positive.
    """
    if not isinstance(counts, tuple) or len(counts) != len(names):
        raise TypeError(f"counts must be a tuple ({', '.join(names)}), got {shown_with_type(counts)}")
    for count in counts:
        check_int("counts", count, 1)
