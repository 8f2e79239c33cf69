"""What every pruning method offers to a model adapter."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

from torch import Tensor

from vitcop_core.checks import check_int, require
from vitcop_core.diagnostics import Diagnosis
from vitcop_core.plan import DecoderCut, Plan, plain_title, pooled_plan
from vitcop_core.tokens import DecoderView, Selection, VisionSelection, VisionView


class Method(ABC):
    """A pruning method: a plan of cuts, and what each cut decides.

    Subclasses are frozen dataclasses that hold only settings, checked when they are made. A method moves nothing: the
    adapter asks for the plan, shows each cut what it needs, and applies the selection. Samples without visual tokens
    never reach it. If a method plans no cut of one kind, it need not write that kind's function.

    An adapter knows no method by name. It asks for everything beyond the plan: :attr:`cuts_depend_on_question`,
    :attr:`needs_cls`, :attr:`needs_projected`, :meth:`for_tower`, :meth:`needs_labels`, :meth:`needs_prompt`,
    :meth:`needs_attention`, :meth:`cut_title` and :meth:`diagnose`. Each has an answer that is right for a method that
    says nothing.
    """

    @property
    def cuts_depend_on_question(self) -> bool:
        """Whether text that follows the last image can change what is kept of it.

        If it cannot, the cache of a prompt up to the end of its images serves any question about them. True unless
        a method says otherwise: a cut that looks at the last token of the prompt depends on the question, and most cuts
        that rank by attention do.
        """
        return True

    @property
    def needs_cls(self) -> bool:
        """Whether the cut before the language model reads the CLS token of the vision tower.

        A method that does is refused for a tower without one; of such a tower :attr:`VisionView.query_cls` is None.
        True unless a method says otherwise; without meaning for one that plans no such cut, and with
        :attr:`needs_projected`.
        """
        return True

    @property
    def needs_projected(self) -> bool:
        """Whether the cut before the language model reads what the projector makes of the features.

        Then :attr:`VisionView.hidden` is that, and the projector runs on all tokens. The view has nothing of the
        tower's attention, so any tower will do, and the selection must not bring features of its own. False unless a
        method says otherwise.
        """
        return False

    def for_tower(self, *, has_cls: bool) -> Self:
        """Return the method with every setting that follows from the vision tower filled in; itself where none does.

        Args:
            has_cls: Whether the tower has a CLS token.
        """
        return self

    def needs_labels(self, cut: DecoderCut) -> bool:
        """Return whether a cut reads :attr:`DecoderView.labels`; if none does, they are None.

        Args:
            cut: One of a plan that the method made.
        """
        return False

    def needs_prompt(self, cut: DecoderCut) -> bool:
        """Return whether a cut asks for :attr:`DecoderView.prompt`; if none does, the embeddings are not kept.

        Args:
            cut: One of a plan that the method made.
        """
        return False

    def needs_attention(self, cut: DecoderCut) -> bool:
        """Return whether a cut asks for :attr:`DecoderView.attention` or :attr:`DecoderView.attention_of`.

        Where one does, the layer before it runs by itself, so that its input is at hand. True unless a method says
        otherwise.

        Args:
            cut: One of a plan that the method made.
        """
        return True

    def cut_title(self, plan: Plan, number: int) -> str:
        """Return what reports and pictures call a cut.

        Args:
            plan: One that the method made.
            number: 0 for the cut before the language model; those of :attr:`Plan.decoder` are counted from 1.
        """
        return plain_title(number)

    def diagnose(self, keys: Tensor) -> Diagnosis | None:
        """Return whether the settings fit a model, judged by one image; None if there is nothing to say.

        A report asks for it after the prefill, so it may wait for the device.

        Args:
            keys: ``[n, d_v]``, the scored vision layer's keys of the tokens kept in the first unit that was clustered,
                heads side by side; n is at least 2.
        """
        return None

    @abstractmethod
    def plan(self, num_layers: int, visual_tokens: int | Sequence[int], *, images: int = 1) -> Plan:
        """Return the cuts of one sample.

        Args:
            num_layers: Layers of the language model.
            visual_tokens: Visual tokens of each unit (image, tile or frame) before any cut; an int is one unit.
            images: How many images the units make up. A budget in tokens is meant for each image, on average. If it
                were for the sample, a prompt with more images would see less of each, down to nothing.

        Returns:
            The plan, the identity if the budget is for all tokens.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: The budget or the layers do not fit the model or the tokens.
        """

    def pool(self, whole: Plan, images: Sequence[Plan]) -> Plan:
        """Return the plan of a sample of several images, each of which enters the language model as if it were alone.

        Args:
            whole: The plan of all units together.
            images: The plan of each image by itself, in order.

        Returns:
            By default what :func:`pooled_plan` makes of them.
        """
        return pooled_plan(whole, images)

    def cut_vision(
        self,
        seen: VisionView,
        keep: int,
        clusters: int,
        keeps: Tensor | None = None,
        cluster_counts: Tensor | None = None,
    ) -> VisionSelection:
        """Choose the tokens of each unit that enter the language model.

        Args:
            seen: The units.
            keep: Tokens to keep in each, from :attr:`VisionCut.keep`; the most where units differ.
            clusters: Cluster labels that each may use, from :attr:`VisionCut.clusters`; 0 for no clustering. The most
                where units differ.
            keeps: ``[C]`` int64, tokens to keep in each unit, which may be 0; None where all keep ``keep``.
            cluster_counts: ``[C]`` int64, cluster labels of each unit; None where all use ``clusters``. A unit with 0
                is not clustered, and its labels mean nothing.
        """
        raise NotImplementedError(f"{type(self).__name__} plans no cut before the language model")

    def cut_decoder(self, cut: DecoderCut, seen: DecoderView, keeps: Tensor | None = None) -> Selection:
        """Choose the visual tokens that one layer of the language model goes on with.

        Args:
            cut: The cut; ``cut.keep`` is the largest over the rows.
            seen: The visual tokens of every row.
            keeps: ``[B]`` int64, tokens to keep in each row; None where all keep ``cut.keep``.
        """
        raise NotImplementedError(f"{type(self).__name__} plans no cut inside the language model")


def unit_counts(visual_tokens: int | Sequence[int], images: int) -> tuple[tuple[int, ...], int]:
    """Return the checked tokens of each unit and the number of images, for :meth:`Method.plan`.

    Raises:
        TypeError: A count is not an integer.
        ValueError: There are no units, a count is not positive, or there are more images than units.
    """
    if isinstance(visual_tokens, Sequence) and not isinstance(visual_tokens, str | bytes):
        units = tuple(check_int("visual_tokens", unit, 1) for unit in visual_tokens)
    else:
        units = (check_int("visual_tokens", visual_tokens, 1),)
    require(len(units) > 0, "visual_tokens", "a count, or one for each unit", visual_tokens)
    return units, check_int("images", images, 1, len(units))
