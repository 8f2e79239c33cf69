"""Small models of every family on a device, against the same models on the CPU.

For each family and attention backend: kept tokens equal, logits close; keeping all is the unpruned model, a batch is
its rows, decoding with a cache is computing anew, and nothing stays behind. Beside that it notes where the host waits
for the device, and how many launches pruning adds. The result is JSON; the exit code is 1 where something is not as it
should be.
"""

from __future__ import annotations

import argparse
import copy
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CompileConfig

import vitcop_cuda
import vitcop_video  # noqa: F401  (brings the family of clips)
from vitcop_core import DivPrune, FastV, Method, PyramidDrop, SparseVLM, VisionZip, VisPruner, ViTCoP
from vitcop_core.files import write_json
from vitcop_llava.families import locate
from vitcop_llava.hooks.graphs import Graphs
from vitcop_llava.pruner import prune
from vitcop_llava.tools.benchmark.prompts import make_prompt
from vitcop_llava.tools.benchmark.shapes import SHAPES, Vision, random_model
from vitcop_llava.tools.model.environment import environment

FAMILIES = {
    "llava": "small",
    "llava_next": "small-next",
    "llava_next_video": "small-video",
    "qwen2_5_vl": "small-qwen2.5",
    "qwen3_vl": "small-qwen3",
}
METHODS: dict[str, Method] = {
    "ViTCoP": ViTCoP(retention_ratio=1 / 4),
    "ViTCoP, official": ViTCoP(retention_ratio=1 / 4, compat="official"),
    "ViTCoP, attention": ViTCoP(retention_ratio=1 / 4, saliency="attention"),
    "FastV": FastV(retention_ratio=1 / 3),
    "PyramidDrop": PyramidDrop(retention_ratio=1 / 2),
    "SparseVLM": SparseVLM(retention_ratio=1 / 2),
    "VisionZip": VisionZip(retention_ratio=1 / 4),
    "DivPrune": DivPrune(retention_ratio=1 / 4),
    "VisPruner": VisPruner(retention_ratio=1 / 4),
}
SEED = 1
"""Of weights. With it no method's choice is so close in any family that another order of summing changes it."""

TOLERANCE = 2e-3
"""Of logits in float32 that two devices sum up in other orders."""

# What launches nothing: views, and what only looks at shapes.
QUIET = set(
    "view _unsafe_view expand as_strided slice select unsqueeze squeeze transpose permute t alias detach split unbind "
    "split_with_sizes sym_size sym_stride is_same_size _local_scalar_dense lift_fresh".split()
)


class Launches(TorchDispatchMode):
    """Counts the operators that would start a kernel."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function._schema.name.rpartition("::")[2] not in QUIET
        return function(*args, **(kwargs or {}))


def small_model(family: str, attention: str) -> Any:
    """Return a model with random weights in float32, on the CPU."""
    shape = SHAPES[FAMILIES[family]]
    if isinstance(shape.vision, Vision):
        shape = replace(shape, vision=replace(shape.vision, side=168))
    model = random_model(shape, torch.float32, "cpu", attention, seed=SEED)
    # New norms have weights of one. Where keys are normed that makes all of them as long as each other, and which are
    # kept a matter of rounding.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SEED)
        for name, weight in model.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                weight.uniform_(0.5, 1.5)
    return model


def prompt_of(model: Any, *, quick: bool) -> dict[str, Tensor]:
    """Return two rows with an image or a clip each, small ones if ``quick``, and a mask of ones as `generate` passes
    it.
    """
    parts = locate(model)
    size = (parts.anyres.tile_size,) * 2 if quick and parts.anyres is not None and parts.video is None else None
    if parts.squares is not None:
        size = (224, 448)  # more squares, and two of them are all but alike
    frames = (2 if quick else 8) if parts.video is not None else None
    inputs = dict(make_prompt(model, parts, batch=2, text_tokens=24, image_size=size, frames=frames).inputs)
    return {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}


def on(device: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the inputs on a device."""
    return {name: value.to(device) for name, value in inputs.items()}


def mask_of_step(inputs: dict[str, Tensor]) -> Tensor | None:
    """Return the mask that a decoded token goes on from; None for Qwen-VL, whose own steps take none without places."""
    return None if "image_grid_thw" in inputs else inputs.get("attention_mask")


def run(model: Any, inputs: dict[str, Tensor], steps: int = 2) -> list[Tensor]:
    """Return the logits of a prefill and of some decoded tokens, on the CPU."""
    output = model(**inputs, use_cache=True)
    found, cache, mask = [output.logits.float().cpu()], output.past_key_values, mask_of_step(inputs)
    token = inputs["input_ids"][:, :1]
    for _ in range(steps):
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)
        output = model(input_ids=token, attention_mask=mask, past_key_values=cache, use_cache=True)
        found.append(output.logits.float().cpu())
    return found


def kept(pruner: Any, rows: int) -> list[list[list[int]]]:
    """Return the patches of every row after every cut."""
    return [[stage.patches.tolist() for stage in pruner.survivors(row).stages] for row in range(rows)]


def apart(one: list[Tensor], other: list[Tensor]) -> float:
    """Return the largest difference."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def compare_devices(model: Any, inputs: dict[str, Tensor], device: str, method: Method) -> dict[str, Any]:
    """Return the model on both devices."""
    moved, rows = copy.deepcopy(model).to(device), inputs["input_ids"].shape[0]
    with prune(model, method) as here:
        expected = run(model, inputs)
    with prune(moved, method) as there:
        found = run(moved, on(device, inputs))
    far, same = apart(found, expected), kept(there, rows) == kept(here, rows)
    return {"kept_equal": same, "logits_apart": far, "ok": same and far <= TOLERANCE}


def check_captured(model: Any, inputs: dict[str, Tensor], method: Method) -> dict[str, Any]:
    """Check prefills that are replayed on the model's own device: the same as run, and theirs to keep."""
    other = {name: value.flip(0) if name.startswith("pixel") else value for name, value in inputs.items()}
    with prune(model, method):
        expected, expected_other = run(model, inputs), run(model, other)
    with prune(model, method, capture=True) as pruner:
        for _ in range(2):
            run(model, inputs)
        obstacle = pruner.uncaptured
        output = model(**inputs, use_cache=True)
        found_other, found = run(model, other), run(model, inputs)
        output_apart = apart([output.logits.float().cpu()], expected[:1])
    far = max(apart(found, expected), apart(found_other, expected_other), output_apart)
    is_whole = obstacle is None or (locate(model).squares is not None and "never recorded" in obstacle)
    return {"obstacle": obstacle, "logits_apart": far, "ok": is_whole and far == 0}


def check_tokens(
    model: Any, inputs: dict[str, Tensor], method: Method, compiling: CompileConfig | None = None
) -> dict[str, Any]:
    """Check answers in a static cache, whose tokens are replayed: the same as run, with rows that are padded too.

    ``compiling`` has the settings of `torch.compile`; None for tokens as they are.
    """
    model.generation_config.update(**dict.fromkeys(("eos_token_id", "bos_token_id", "pad_token_id"), None))
    mask = inputs["attention_mask"].clone()
    mask[0, 0] = 0  # which padding is
    given, static = {**inputs, "attention_mask": mask}, dict[str, Any](cache_implementation="static")
    static |= {"disable_compile": True} if compiling is None else {"compile_config": compiling}
    more: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "output_logits": True}
    more["return_dict_in_generate"] = True
    with prune(model, method):
        expected = model.generate(**given, **more, **static)
    with prune(model, method, capture=True) as pruner:
        found = [model.generate(**given, **more, **static) for _ in range(2)]
        obstacle = pruner.uncaptured_token
    far = max(apart([*each.logits], [*expected.logits]) for each in found)
    same = all(torch.equal(each.sequences, expected.sequences) for each in found)
    # Code that is compiled a second time may sum up in another order.
    is_close = far <= (0 if compiling is None else TOLERANCE)
    return {"obstacle": obstacle, "logits_apart": far, "tokens_equal": same, "ok": same and is_close and not obstacle}


def check_compiled_tokens(device: str) -> dict[str, Any]:
    """Check that compiled tokens are replayed in both modes of inference: code of one is none of the other's."""
    found, config = dict[str, Any](), CompileConfig(mode="default")
    for mode, is_inference in (("inference_mode", True), ("no_grad", False)):
        torch.compiler.reset()
        with torch.inference_mode(is_inference), torch.no_grad():
            model = small_model("llava", "sdpa").to(device)
            inputs = on(device, prompt_of(model, quick=True))
            try:
                found[mode] = check_tokens(model, inputs, METHODS["ViTCoP"], config)
            except Exception as error:
                found[mode] = {"ok": False, "error": f"{type(error).__name__}: {error}"}
    return found


def check_failing_recording() -> dict[str, Any]:
    """Work that waits for the device cannot be recorded: that is told, and the device goes on."""
    graphs, given = Graphs(), torch.ones(4, device="cuda")

    def work(each: Tensor) -> tuple[Tensor, ...]:
        return (each * each.sum().item(),)

    told = [graphs.run("waits", work, (given,)) for _ in range(3)]
    later = [graphs.run("does not", lambda each: (each + 1,), (given,)) for _ in range(3)]
    goes_on = isinstance(later[-1], list) and bool((later[-1][0] == 2).all())
    is_told = isinstance(told[1], str) and told[2] == told[1]  # and on the same stream, which is part of the key
    return {"told": [*map(str, told)], "later": [*map(str, later)], "ok": goes_on and is_told}


def check_properties(model: Any, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """Return the four promises, on the model's own device."""
    before = {name: (len(part._forward_hooks), len(part._forward_pre_hooks)) for name, part in model.named_modules()}
    plain, method = run(model, inputs), METHODS["ViTCoP"]
    with prune(model, ViTCoP(retention_ratio=1)):
        keep_all = run(model, inputs)
    with prune(model, method):
        whole = run(model, inputs)
        rows = [run(model, first_rows(inputs, row)) for row in range(inputs["input_ids"].shape[0])]
        ids = torch.cat([inputs["input_ids"], inputs["input_ids"][:, :1].expand(-1, 2)], dim=1)
        longer = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "mm_token_type_ids" in inputs:
            longer["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 2))
        anew = model(**longer).logits.float().cpu()
    after = {name: (len(part._forward_hooks), len(part._forward_pre_hooks)) for name, part in model.named_modules()}
    by_rows = [torch.cat(parts) for parts in zip(*rows, strict=True)]
    found = {
        "keep_all_apart": apart(keep_all, plain),
        "rows_apart": apart(by_rows, whole),
        "decoded_apart": apart([anew[:, -1:]], [whole[-1][:, -1:]]),
        "left_nothing": before == after and apart(run(model, inputs), plain) == 0,
    }
    close = found["rows_apart"] <= TOLERANCE and found["decoded_apart"] <= TOLERANCE
    return {**found, "ok": found["keep_all_apart"] == 0 and close and found["left_nothing"]}


def first_rows(inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """Return one row of a batch whose rows have equally many images."""
    rows = inputs["input_ids"].shape[0]
    each = {name: len(value) // rows for name, value in inputs.items()}
    return {name: value[row * each[name] : (row + 1) * each[name]] for name, value in inputs.items()}


@contextmanager
def noting_waits(device: str) -> Iterator[list[str]]:
    """Note where the host waits for the device: the innermost functions of each place."""
    found: list[str] = []

    def note(message: Any, *rest: Any, **more: Any) -> None:
        if "synchroniz" in str(message):
            frames = traceback.extract_stack()[:-2]
            found.append(" < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-4:])))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")


def count_launches(call: Callable[[], Any], device: str) -> int:
    """Count kernels that a call starts; on a CPU the operators that would start one."""
    if device == "cpu":
        counting = Launches()
        with counting:
            call()
        return counting.count
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type.name == "CUDA" for event in profile.events())


def costs_of_pruning(model: Any, inputs: dict[str, Tensor], device: str) -> dict[str, Any]:
    """Wait and launches of a prefill and a decoded token, pruned and not, with a mask of ones and without."""
    found: dict[str, Any] = {}
    for name, method in (("unpruned", None), ("pruned", METHODS["ViTCoP"])):
        for masked in (True, False):
            given = {key: value for key, value in inputs.items() if masked or key != "attention_mask"}
            with nullcontext() if method is None else prune(model, method):
                found[f"{name}, {'mask of ones' if masked else 'no mask'}"] = _costs(model, given, device)
    return found


def _costs(model: Any, given: dict[str, Tensor], device: str) -> dict[str, Any]:
    held: dict[str, Any] = {}

    def prefill() -> None:
        held["cache"] = model(**given, use_cache=True, logits_to_keep=1).past_key_values

    mask, token = mask_of_step(given), given["input_ids"][:, :1]
    longer = None if mask is None else torch.cat([mask, mask[:, :1]], dim=1)

    def decode() -> None:
        model(input_ids=token, attention_mask=longer, past_key_values=held["cache"], use_cache=True)

    prefill()  # what is only done once is done
    with noting_waits(device) as waits:
        prefill()
        in_prefill = len(waits)
        decode()
    return {
        "waits_prefill": waits[:in_prefill],
        "waits_decode": waits[in_prefill:],
        "launches_prefill": count_launches(prefill, device),
        "launches_decode": count_launches(decode, device),
    }


BACKENDS = ("sdpa", "eager")
"""FlashAttention needs half precision, in which two devices cannot be compared as closely."""


def main() -> None:
    """Check every family, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="two methods and one attention backend")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)  # models so small gain nothing by more
    torch.backends.cudnn.allow_tf32 = False  # the patch embedding is a convolution
    methods = dict(list(METHODS.items())[:: 3 if options.quick else 1])
    command = " ".join(["python scripts/gpu_model_check.py", *sys.argv[1:]])
    result: dict[str, Any] = {
        "command": command,
        "environment": environment(),
        "kernels": vitcop_cuda.reason or "loaded",
    }
    with torch.inference_mode():
        if options.device == "cuda":
            result["a recording that fails"] = {"graphs": check_failing_recording()}
            result["compiled tokens, replayed"] = check_compiled_tokens(options.device)
        for family in FAMILIES:
            for attention in BACKENDS[: 1 if options.quick else None]:
                result[f"{family}, {attention}"] = check(
                    family, attention, options.device, methods, quick=options.quick
                )
                write_json(options.out, result)
    wrong = [
        f"{where}: {name}"
        for where, found in result.items()
        if isinstance(found, dict)
        for name, each in found.items()
        if isinstance(each, dict) and not each.get("ok", True)
    ]
    print(f"{options.out}: " + ("; ".join(wrong) if wrong else "everything is as it should be"))
    sys.exit(1 if wrong else 0)


def check(family: str, attention: str, device: str, methods: dict[str, Method], *, quick: bool) -> dict[str, Any]:
    """Check everything about one family under one attention backend."""
    model = small_model(family, attention)
    inputs, found = prompt_of(model, quick=quick), dict[str, Any]()
    for name, method in methods.items():
        try:
            found[name] = compare_devices(model, inputs, device, method)
        except Exception as error:
            found[name] = {"ok": False, "error": f"{type(error).__name__}: {error}"}
    moved, there = model.to(device), on(device, inputs)
    for name, method in methods.items() if attention == "sdpa" else ():
        for what, checked in (("replayed", check_captured), ("replayed tokens", check_tokens)):
            try:
                found[f"{name}, {what}"] = checked(moved, there, method)
            except Exception as error:
                found[f"{name}, {what}"] = {"ok": False, "error": f"{type(error).__name__}: {error}"}
    try:
        found["properties"] = check_properties(moved, there)
    except Exception as error:
        found["properties"] = {"ok": False, "error": f"{type(error).__name__}: {error}"}
    found["costs"] = costs_of_pruning(moved, first_rows(there, 0), device)
    return found


if __name__ == "__main__":
    main()
