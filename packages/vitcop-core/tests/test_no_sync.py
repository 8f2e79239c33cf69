"""Nothing in the prefill's path may make the host wait for the device: sizes come from shapes, never from values."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from vitcop_core import (
    DecoderCut,
    DecoderView,
    DivPrune,
    FastV,
    Method,
    PromptView,
    PyramidDrop,
    SparseVLM,
    VisionView,
    VisionZip,
    VisPruner,
    ViTCoP,
    ops,
)

_FORBIDDEN = (
    "_local_scalar_dense",
    "nonzero",
    "nonzero_numpy",
    "argwhere",
    "masked_select",
    "masked_scatter",
    "is_nonzero",
    "equal",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "repeat_interleave",
    "bincount",
)
_MASKABLE = ("index", "index_put", "index_put_")
_READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__")


class _DeviceRules(TorchDispatchMode):
    """Raises on operations whose result's size, or whose caller, needs the values of a tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace == "vitcop":
            # Look inside: a mode does not see what an operator's implementation calls.
            with self:
                return ops.REFERENCES[name](*args, **(kwargs or {}))
        if name in _FORBIDDEN:
            raise AssertionError(f"aten::{name} waits for the device")
        masks = args[1] if name in _MASKABLE else []
        if any(mask is not None and mask.dtype in (torch.bool, torch.uint8) for mask in masks):
            raise AssertionError(f"aten::{name} with a mask waits for the device")
        return func(*args, **(kwargs or {}))


class _HostRules(TorchFunctionMode):
    """Raises where Python reads a tensor; reading one on the CPU does not always reach the dispatcher."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _READS:
            raise AssertionError(f"Tensor.{name} waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_host_sync() -> Iterator[None]:
    with _HostRules(), _DeviceRules():
        yield


@pytest.mark.parametrize(
    "action",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: bool(x.sum() > 0),
        lambda x: int(x[0]),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: torch.nonzero(x),
        lambda x: torch.unique(x),
        lambda x: [1, 2, 3][x[0].long()],
        lambda x: x.repeat_interleave(torch.tensor([1, 2])),
        lambda x: x.numpy(),
        lambda x: x.cpu(),
    ],
    ids=["item", "tolist", "bool", "int", "mask", "select", "nonzero", "unique", "index", "repeat", "numpy", "cpu"],
)
def test_the_rules_catch_a_wait(action: Callable[[Tensor], Any]) -> None:
    values = torch.ones(2)
    with pytest.raises(AssertionError, match="waits for the device"), no_host_sync():
        action(values)


def test_the_rules_look_inside_an_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ops.REFERENCES, "key_norm", lambda keys: keys[keys > 0])
    with pytest.raises(AssertionError, match="with a mask"), no_host_sync():
        ops.key_norm(torch.ones(1, 1, 1, 1))


METHODS = {
    "paper": ViTCoP(retained_tokens=64),
    "official": ViTCoP(retained_tokens=64, compat="official"),
    "attention": ViTCoP(retained_tokens=64, saliency="attention"),
    "temporal": ViTCoP(retained_tokens=64, change_share=0.5, cluster_frames=2),
    "received": ViTCoP(retained_tokens=64, vision_saliency="received", cutoff_distance="auto"),
    "vision_hidden": ViTCoP(retained_tokens=64, vic_features="vision_hidden", merge="anchor_plus_mean"),
}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@methods
@pytest.mark.parametrize("clusters", [0, 4])
@pytest.mark.parametrize("frames", [None, (2,)], ids=str)
def test_vision_cut_never_waits(
    vision_view: Callable[..., VisionView], method: ViTCoP, clusters: int, frames: tuple[int, ...] | None
) -> None:
    view = replace(vision_view(), frames=frames)
    with no_host_sync():
        method.cut_vision(view, 12, clusters)


@methods
@pytest.mark.parametrize("frames", [None, (2,), (1, 1)], ids=str)
def test_ragged_vision_cut_never_waits(
    vision_view: Callable[..., VisionView], method: ViTCoP, frames: tuple[int, ...] | None
) -> None:
    eligible, lengths = torch.arange(20).expand(2, -1), torch.tensor([20, 7])
    view = replace(vision_view(), eligible=eligible, lengths=lengths, frames=frames)
    keeps, clusters = torch.tensor([12, 3]), torch.tensor([4, 2])
    with no_host_sync():
        method.cut_vision(view, 12, 4, keeps, clusters)


@methods
@pytest.mark.parametrize("stage", ["co_prune", "top_tokens"])
@pytest.mark.parametrize("lengths", [[20, 20], [20, 9, 1]], ids=["even", "ragged"])
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_decoder_cut_never_waits(
    decoder_view: Callable[..., DecoderView], method: ViTCoP, stage: Any, lengths: list[int], grad: bool
) -> None:
    view = decoder_view(lengths, 4)
    view.hidden.requires_grad_(grad)
    keeps = torch.tensor([min(length, 7) for length in lengths])
    with no_host_sync():
        method.cut_decoder(DecoderCut(2, 7, stage), view, keeps)


@pytest.mark.parametrize("method", [VisionZip, DivPrune, VisPruner])
@pytest.mark.parametrize("ragged", [False, True], ids=["even", "ragged"])
def test_vision_cut_of_a_baseline_never_waits(
    vision_view: Callable[..., VisionView], method: Any, ragged: bool
) -> None:
    view = vision_view()
    view = replace(view, hidden_cls=view.hidden[:, 0])
    given: tuple[Tensor | None, Tensor | None] = (None, None)
    if ragged:
        view = replace(view, eligible=torch.arange(20).expand(2, -1), lengths=torch.tensor([20, 7]))
        given = torch.tensor([12, 3]), torch.tensor([4, 1])
    with no_host_sync():
        method(retained_tokens=12).cut_vision(view, 12, 4, *given)


@pytest.mark.parametrize("method", [FastV(keep=7), PyramidDrop(ratio=0.5), SparseVLM(counts=(7, 5, 3))], ids=str)
@pytest.mark.parametrize("lengths", [[20, 20], [20, 9, 1]], ids=["even", "ragged"])
def test_attention_cut_never_waits(
    decoder_view: Callable[..., DecoderView], method: Method, lengths: list[int]
) -> None:
    view = decoder_view(lengths, 4)
    attention = view.attention()
    prompt = PromptView(view.hidden, view.lengths, view.hidden[:, :5], None)
    view = replace(view, own_attention=view.attention, attention_of=lambda _: attention, prompt=lambda: prompt)
    keeps = torch.tensor([min(length, 7) for length in lengths])
    with no_host_sync():
        method.cut_decoder(DecoderCut(2, 7, "recycle", recycled=1, pack_positions=True), view, keeps)
