"""The model that ``vitcop bench`` measures: a checkpoint, or random weights in a known shape."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitcop_llava.tools.cli.errors import UserError, mistakes
from vitcop_llava.tools.cli.output import progress
from vitcop_llava.tools.cli.running import Notes, open_model, quiet

if TYPE_CHECKING:
    import torch

    from vitcop_llava.families import Parts


@dataclass(frozen=True, eq=False)
class BenchModel:
    """A model that can be measured.

    Attributes:
        model: In evaluation mode, on its device.
        parts: What the family adapter found.
        name: The shape, or where it came from.
        options: Those of the command that make it again, by name; the demo model has none.
    """

    model: Any
    parts: Parts
    name: str
    options: dict[str, str]

    @property
    def summary(self) -> dict[str, Any]:
        """What ran, for machines."""
        from vitcop_llava.tools.benchmark.shapes import weight_bytes

        parameter = next(self.model.parameters())
        return {
            "name": self.name,
            "class": type(self.model).__name__,
            "layers": self.parts.shape.num_layers,
            "weight_bytes": weight_bytes(self.model),
            "device": str(parameter.device),
            "dtype": str(parameter.dtype).removeprefix("torch."),
            "attention": self.parts.config._attn_implementation,
        }

    def describe(self) -> str:
        """Return what ran, for people."""
        summary = self.summary
        return (
            f"{self.name}: {summary['layers']} layers, {summary['dtype']} on {summary['device']}, "
            f"{summary['attention']} attention"
        )


def open_bench_model(
    shape: str | None, source: str | None, device: str, dtype: str, attention: str | None, notes: Notes
) -> BenchModel:
    """Make or load the model: the demo model if neither is named.

    Raises:
        UserError: where both are named, or what is asked for cannot be had.
    """
    if shape is not None and source is not None:
        raise UserError(f"--shape must not be given with --model, which has a shape, got {shape!r} and {source!r}")
    if shape is not None:
        return _made(shape, device, dtype, attention or "sdpa", notes)
    loaded = open_model(source, device, dtype, notes)
    _check_attention(attention, loaded.device, loaded.dtype)
    if attention is not None:
        with quiet(notes), _attention_mistakes(attention):
            loaded.model.set_attn_implementation(attention)
    found = BenchModel(loaded.model, loaded.parts, "demo model" if source is None else source, {})
    options = {} if source is None else {"model": source}
    return BenchModel(found.model, found.parts, found.name, options | _options(found.summary))


def _made(name: str, device: str, dtype: str, attention: str, notes: Notes) -> BenchModel:
    with progress("loading the libraries"):
        from vitcop_llava.families import locate
        from vitcop_llava.tools.benchmark.shapes import SHAPES, random_model, skeleton
        from vitcop_llava.tools.model.loading import DTYPES, find_device
    if name not in SHAPES:
        raise UserError(f"--shape must be one of {', '.join(SHAPES)}, got {name!r}")
    if dtype not in ("auto", *DTYPES):
        raise UserError(f"--dtype must be auto, {', '.join(DTYPES)}, got {dtype!r}")
    kind = DTYPES["bfloat16" if dtype == "auto" else dtype]
    with mistakes(options={"device": "--device"}):
        where = find_device(device)
    _check_attention(attention, where, kind)
    with quiet(notes), progress("making the model"):
        with _attention_mistakes(attention):
            empty = skeleton(SHAPES[name], kind, attention)
        with mistakes():
            locate(empty)  # a family whose package is missing is told before gigabytes are filled
        check_memory(name, empty, where)
        model = random_model(SHAPES[name], kind, where, attention)
    found = BenchModel(model, locate(model), name, {})
    return BenchModel(model, found.parts, name, {"shape": name} | _options(found.summary))


def _options(summary: dict[str, Any]) -> dict[str, str]:
    return {name: summary[name] for name in ("dtype", "device", "attention")}


def check_memory(name: str, empty: Any, device: torch.device) -> None:
    """Raise unless a model's weights fit into what is free.

    Args:
        name: Its shape.
        empty: The model without weights.
        device: Where it is to go.

    Raises:
        UserError: They do not; the message has the shapes that would.
    """
    from vitcop_llava.tools.benchmark.memory import free_bytes
    from vitcop_llava.tools.benchmark.report import as_bytes
    from vitcop_llava.tools.benchmark.shapes import SHAPES, skeleton, weight_bytes

    free, needed, dtype = free_bytes(device), weight_bytes(empty), next(empty.parameters()).dtype
    if free is None or needed < free:
        return
    # Families differ by less than a line of tokens.
    sizes = {(shape.vision, shape.language): 0 for shape in SHAPES.values()}
    for shape in SHAPES.values():
        if shape.family not in ("llava_next", "llava_next_video"):
            sizes[shape.vision, shape.language] = weight_bytes(skeleton(shape, dtype))
    fitting = [other for other, shape in SHAPES.items() if sizes[shape.vision, shape.language] < free]
    instead = f"in {str(dtype).removeprefix('torch.')} these do: {', '.join(fitting)}" if fitting else "none does"
    raise UserError(
        f"--shape must fit into the {as_bytes(free)} that are free on {device}, got {name}, whose weights take "
        f"{as_bytes(needed)}; {instead}"
    )


def _check_attention(attention: str | None, device: torch.device, dtype: torch.dtype) -> None:
    """Raise where FlashAttention is asked for what it cannot do: it would fail in the middle of a run."""
    if attention is None or not attention.startswith("flash_attention"):
        return
    if device.type != "cuda" or dtype.itemsize != 2:
        kind = str(dtype).removeprefix("torch.")
        raise UserError(f"--attention {attention} must be used on CUDA, in float16 or bfloat16, got {kind} on {device}")


@contextmanager
def _attention_mistakes(attention: str) -> Iterator[None]:
    """Turn a backend that transformers does not have, or that is not installed, into a mistake of the user's."""
    try:
        yield
    except (ImportError, ValueError, KeyError) as error:
        raise UserError(f"--attention must be one that is installed, got {attention!r}: {error}") from error
