"""Plans: which cuts happen where, and how many visual tokens each leaves.

Integers and fractions only: no tensors, no model.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from vitcop_core.checks import (
    MAX_LAYERS,
    check_flag,
    check_instance,
    check_int,
    check_sequence,
    check_text,
    check_tuple,
    plain_fields,
    require,
)
from vitcop_core.cost import LanguageModelShape, check_shape, layer_kv_bytes, layer_macs


@dataclass(frozen=True)
class VisionCut:
    """What happens to the tokens of each unit before they enter the language model.

    A unit is one forward of the vision tower: an image, a tile of a high-resolution image, or a frame.

    Attributes:
        keep: Tokens kept in each unit.
        clusters: Cluster labels that each unit may use, ``0 .. clusters - 1``, or how many of its kept tokens are made
            of several or chosen for being unlike others; 0 if nothing is clustered.

    Raises:
        TypeError: They are not tuples of integers.
        ValueError: One is negative, nothing is kept, or they are not as many.
    """

    keep: tuple[int, ...]
    clusters: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check the counts."""
        plain_fields(self)
        check_tuple("keep", self.keep, "integers")
        check_tuple("clusters", self.clusters, "integers")
        require(len(self.keep) == len(self.clusters), "clusters", f"{len(self.keep)} counts, as keep", self.clusters)
        for keep, clusters in zip(self.keep, self.clusters, strict=True):
            check_int("keep", keep, 1)
            check_int("clusters", clusters, 0)


@dataclass(frozen=True)
class DecoderCut:
    """A reduction of the visual tokens just before one layer of the language model.

    Attributes:
        layer: Index, from 0, of the first layer that runs on the smaller set.
        keep: Visual tokens left in the sample, ``recycled`` apart. The cut of a padded batch carries the largest of its
            rows.
        stage: What decides, in a word of the method's own. Only the method that planned the cut knows what it means,
            and says what such a cut needs and is called: :meth:`Method.needs_labels`, :meth:`Method.needs_prompt` and
            :meth:`Method.cut_title`.
        reindex_positions: Whether the kept tokens, from this layer on, get the position ids 0, 1, ... that they would
            have had in the sequence before the cut, as ViTCoP's released code does in its last stage; otherwise they
            carry their own.
        recycled: Tokens made of dropped ones, which follow the last visual token of the sample. The cut of a padded
            batch carries the largest of its rows.
        pack_positions: Whether all tokens from this layer on, the generated ones too, are numbered as if what the cut
            dropped had never been there.

    Raises:
        TypeError: A field is of the wrong type.
        ValueError: A field is out of range, or two contradict each other.
    """

    layer: int
    keep: int
    stage: str
    reindex_positions: bool = False
    recycled: int = 0
    pack_positions: bool = False

    def __post_init__(self) -> None:
        """Check the layer and the counts."""
        plain_fields(self)
        # The keys that a cut reads come from the layer before it.
        check_int("layer", self.layer, 1, MAX_LAYERS)
        check_int("keep", self.keep, 1)
        check_int("recycled", self.recycled, 0)
        check_text("stage", self.stage)
        check_flag("reindex_positions", self.reindex_positions)
        check_flag("pack_positions", self.pack_positions)
        both = self.reindex_positions and self.pack_positions
        require(not both, "pack_positions", "False with reindex_positions", self.pack_positions)
        # A token that never was has no position to keep.
        require(self.pack_positions or not self.recycled, "pack_positions", "True with recycled", self.pack_positions)

    @property
    def tokens(self) -> int:
        """Visual tokens that the layer runs on: kept and recycled."""
        return self.keep + self.recycled


@dataclass(frozen=True)
class Plan:
    """The cuts of one sample.

    Attributes:
        num_layers: Layers of the language model, at most 10,000.
        units: Visual tokens of each unit before any cut.
        vision: The cut before the language model; None if it would neither drop nor cluster anything.
        decoder: The cuts inside the language model, in ascending order of layer. A cut that would keep everything is
            left out.

    Raises:
        TypeError: A field is of the wrong type.
        ValueError: A number is out of range, or the cuts do not fit the units, the model or one another.
    """

    num_layers: int
    units: tuple[int, ...]
    vision: VisionCut | None
    decoder: tuple[DecoderCut, ...]

    def __post_init__(self) -> None:
        """Check that the cuts fit."""
        plain_fields(self)
        check_int("num_layers", self.num_layers, 1, MAX_LAYERS)
        check_tuple("units", self.units, "integers")
        check_tuple("decoder", self.decoder, "DecoderCut")
        require(len(self.units) > 0, "units", "at least one count", self.units)
        for unit in self.units:
            check_int("units", unit, 1)
        if self.vision is not None:
            check_instance("vision", self.vision, VisionCut, "a VisionCut or None")
            fits = len(self.vision.keep) == len(self.units)
            fits = fits and all(keep <= unit for keep, unit in zip(self.vision.keep, self.units, strict=True))
            require(fits, "vision.keep", f"at most the units {self.units}", self.vision.keep)
        layer, tokens = 0, self.entry_tokens
        for cut in self.decoder:
            check_instance("decoder", cut, DecoderCut, "a tuple of DecoderCut")
            require(layer < cut.layer < self.num_layers, "layer", f"in ({layer}, {self.num_layers})", cut.layer)
            require(cut.tokens < tokens, "keep", f"less than the {tokens} tokens before the cut", cut.tokens)
            layer, tokens = cut.layer, cut.tokens

    @property
    def visual_tokens(self) -> int:
        """Visual tokens before any cut."""
        return sum(self.units)

    @property
    def entry_tokens(self) -> int:
        """Visual tokens that enter the language model."""
        return sum(self.units if self.vision is None else self.vision.keep)

    @property
    def num_clusters(self) -> int:
        """Cluster labels over all units; 0 where nothing is clustered."""
        return 0 if self.vision is None else sum(self.vision.clusters)

    @property
    def is_identity(self) -> bool:
        """Whether the plan leaves every token where it was."""
        return self.vision is None and not self.decoder

    @property
    def tokens_per_layer(self) -> tuple[int, ...]:
        """Visual tokens at the input of each layer, the layer's own cut applied."""
        return tuple(self._tokens())

    @property
    def average_tokens(self) -> Fraction:
        """Visual tokens at a layer's input, averaged over the layers: what a budget bounds."""
        return Fraction(sum(self._tokens()), self.num_layers)

    def macs(self, shape: LanguageModelShape, text_tokens: int) -> int:
        """Return the multiply-accumulates of the language model's layers in the prefill.

        Args:
            shape: The language model.
            text_tokens: Tokens of the prompt that are not visual.

        Raises:
            TypeError: ``shape`` is not one, or ``text_tokens`` no integer.
            ValueError: ``shape`` has another number of layers, or ``text_tokens`` is negative.
        """
        return sum(layer_macs(shape, tokens) for tokens in self._lengths(shape, text_tokens))

    def kv_bytes_per_layer(
        self, shape: LanguageModelShape, text_tokens: int, bytes_per_element: int = 2
    ) -> tuple[int, ...]:
        """Return the bytes of each layer's key-value cache after the prefill.

        Args:
            shape: The language model.
            text_tokens: Tokens of the prompt that are not visual.
            bytes_per_element: 2 for half precision, 4 for single.

        Raises:
            TypeError: ``shape`` is not one, or a number no integer.
            ValueError: ``shape`` has another number of layers, or a number is out of range.
        """
        return tuple(layer_kv_bytes(shape, n, bytes_per_element) for n in self._lengths(shape, text_tokens))

    def kv_bytes(self, shape: LanguageModelShape, text_tokens: int, bytes_per_element: int = 2) -> int:
        """Return the bytes of the whole key-value cache after the prefill: the sum of :meth:`kv_bytes_per_layer`."""
        return sum(self.kv_bytes_per_layer(shape, text_tokens, bytes_per_element))

    def _tokens(self) -> Iterator[int]:
        left = {cut.layer: cut.tokens for cut in self.decoder}
        tokens = self.entry_tokens
        for layer in range(self.num_layers):
            tokens = left.get(layer, tokens)
            yield tokens

    def _lengths(self, shape: LanguageModelShape, text_tokens: int) -> list[int]:
        check_shape(shape)
        require(shape.num_layers == self.num_layers, "shape", f"a model of {self.num_layers} layers", shape.num_layers)
        text_tokens = check_int("text_tokens", text_tokens, 0)
        return [tokens + text_tokens for tokens in self._tokens()]


def pooled_plan(whole: Plan, images: Sequence[Plan]) -> Plan:
    """Return the plan of a sample whose images enter the language model as each one's own plan says.

    An image is cut in the vision tower before it is known what shares its prompt, so what it enters with follows from
    its own size alone. The cuts inside the language model are the sample's: they choose among the tokens of all images
    together.

    Args:
        whole: The plan of all units together, which has the cuts inside the language model. One that would keep
            everything that enters is left out.
        images: The plan of each image by itself, in order; together they have the units of ``whole``.

    Raises:
        TypeError: An argument is no plan, or no sequence of plans.
        ValueError: The units or the layers disagree.
    """
    check_instance("whole", whole, Plan, "a Plan")
    check_sequence("images", images)
    for image in images:
        check_instance("images", image, Plan, "a sequence of Plan")
    units = tuple(unit for image in images for unit in image.units)
    require(units == whole.units, "images", f"plans for the units {whole.units}", units)
    require(all(p.num_layers == whole.num_layers for p in images), "images", "plans for the same layers", images)
    keep: list[int] = []
    clusters: list[int] = []
    for image in images:
        keep.extend(image.units if image.vision is None else image.vision.keep)
        clusters.extend((0,) * len(image.units) if image.vision is None else image.vision.clusters)
    decoder: list[DecoderCut] = []
    for cut in whole.decoder:
        if cut.tokens < (decoder[-1].tokens if decoder else sum(keep)):
            decoder.append(cut)
    cuts_units = any(image.vision is not None for image in images)
    vision = VisionCut(tuple(keep), tuple(clusters)) if cuts_units else None
    return Plan(num_layers=whole.num_layers, units=units, vision=vision, decoder=tuple(decoder))


def identity_plan(num_layers: int, units: tuple[int, ...]) -> Plan:
    """Return the plan that keeps everything.

    Raises:
        TypeError: ``num_layers`` is not an integer, or ``units`` no tuple of integers.
        ValueError: A number is out of range.
    """
    return Plan(num_layers=num_layers, units=units, vision=None, decoder=())


def plain_title(number: int) -> str:
    """Return what a cut is called whose method has no name of its own for it.

    Args:
        number: 0 for the cut before the language model; those inside it are counted from 1.
    """
    return f"Cut {number}" if number else "Vision cut"


def __getattr__(name: str) -> Any:
    if name == "DecoderStage":  # until 0.2
        warnings.warn("DecoderStage is a str now: a stage is a word of the method's own", DeprecationWarning, 2)
        return str
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
