"""What ``vitcop bench`` is made of: shapes, prompts, oracles, rounds, and where the time goes."""

import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from vitcop_core import FastV, ViTCoP
from vitcop_llava import prune
from vitcop_llava.families import locate
from vitcop_llava.tools.benchmark import busy
from vitcop_llava.tools.benchmark.breakdown import PARTS, time_parts
from vitcop_llava.tools.benchmark.brief import WIDTH, bars, lines
from vitcop_llava.tools.benchmark.busy import busy_seconds
from vitcop_llava.tools.benchmark.memory import free_bytes
from vitcop_llava.tools.benchmark.oracle import run_oracle
from vitcop_llava.tools.benchmark.prompts import BenchPrompt, largest_image, make_prompt
from vitcop_llava.tools.benchmark.report import BUSY_HEADINGS, busy_cells
from vitcop_llava.tools.benchmark.result import BenchResult, BenchRow, Spread
from vitcop_llava.tools.benchmark.rounds import interleave
from vitcop_llava.tools.benchmark.run import BenchSettings, run_bench
from vitcop_llava.tools.benchmark.shapes import SHAPES, Vision, random_model, skeleton, weight_bytes

pytestmark = pytest.mark.filterwarnings("ignore::vitcop_llava.FeatureScaleWarning")


@pytest.fixture(scope="module")
def made() -> Callable[..., Any]:
    """A small model by its shape."""
    models = {name: random_model(SHAPES[name], torch.float32, "cpu") for name in ("small", "small-next")}
    return models.__getitem__


def test_seven_billion_shape_has_the_weights_of_the_checkpoint() -> None:
    empty = skeleton(SHAPES["llava-1.5-7b"], torch.bfloat16)
    assert weight_bytes(empty) == 2 * 7_063_427_072
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}


def test_random_model_gives_numbers_and_the_same_again(made: Callable[..., Any]) -> None:
    model, again = made("small"), random_model(SHAPES["small"], torch.float32, "cpu")
    inputs = make_prompt(model, locate(model)).inputs
    with torch.inference_mode():
        logits, others = model(**inputs, logits_to_keep=1).logits, again(**inputs, logits_to_keep=1).logits
    assert logits.isfinite().all()
    assert logits.std() > 0
    assert torch.equal(logits, others)


def test_prompt_holds_its_placeholders_and_text(made: Callable[..., Any]) -> None:
    model = made("small-next")
    prompt = make_prompt(model, locate(model), batch=2, text_tokens=12, image_size=(336, 168), seed=3)
    is_image = prompt.inputs["input_ids"] == model.config.image_token_id
    assert (prompt.batch, prompt.tiling.newlines) == (2, 12)
    assert is_image.sum(1).tolist() == [3 * 144 + 12] * 2
    assert (~is_image).sum(1).tolist() == [12, 12]
    assert int(is_image[0].to(torch.uint8).argmax()) == 7
    assert prompt.inputs["pixel_values"].shape == (2, 3, 3, 168, 168)
    assert prompt.inputs["image_sizes"].tolist() == [[168, 336]] * 2
    assert largest_image(locate(model)) == (336, 336)


@pytest.mark.parametrize(
    ("shape", "given", "said"),
    [
        ("small", {"image_size": (336, 336)}, "image_size must be None for a model that sees every image at 336 x 336"),
        ("small", {"frames": 4}, "frames must be left out for a model that reads no clips, got 4"),
        ("small-next", {"text_tokens": 1}, "text_tokens must be at least 2"),
    ],
)
def test_prompt_that_a_model_cannot_read_is_refused(
    made: Callable[..., Any], shape: str, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        make_prompt(made(shape), locate(made(shape)), **given)


@pytest.mark.parametrize(("shape", "batch"), [("small", 1), ("small", 2), ("small-next", 2)])
def test_oracle_runs_every_layer_at_the_length_of_the_plan(made: Callable[..., Any], shape: str, batch: int) -> None:
    model = made(shape)
    parts = locate(model)
    prompt = make_prompt(model, parts, batch=batch, text_tokens=10)
    plan = ViTCoP(retention_ratio=1 / 3).plan(8, prompt.tiling.units)
    lengths: list[tuple[int, ...]] = []
    towers: list[int] = []
    handles = [layer.register_forward_pre_hook(_note_length(lengths)) for layer in parts.decoder_layers]
    handles.append(parts.vision_tower.register_forward_pre_hook(lambda module, args: towers.append(1)))
    try:
        with torch.inference_mode():
            logits = run_oracle(model, parts, prompt, plan)
    finally:
        for handle in handles:
            handle.remove()
    assert lengths == [(batch, tokens + 10) for tokens in plan.tokens_per_layer]
    assert towers == [1]
    assert logits.shape == (batch, 1, 32064)


def _note_length(lengths: list[tuple[int, ...]]) -> Callable[..., None]:
    def note(module: Any, args: tuple[Tensor, ...]) -> None:
        lengths.append(tuple(args[0].shape[:2]))

    return note


def test_rounds_keep_groups_together_in_changing_order() -> None:
    ran: list[str] = []
    groups = [{name: (lambda name=name: ran.append(name)) for name in group} for group in ("ab", "cd", "e")]
    runs = interleave(groups, repeats=9, warm_up=1, seed=0, what="rounds")
    rounds = ["".join(ran[start : start + 5]) for start in range(0, 50, 5)]
    assert all(sorted(each) == list("abcde") for each in rounds)
    assert all(("ab" in each or "ba" in each) and ("cd" in each or "dc" in each) for each in rounds)
    assert len(set(rounds)) > 3
    assert {name: len(found) for name, found in runs.found.items()} == dict.fromkeys("abcde", 9)


def test_variant_without_memory_is_given_up_and_the_others_go_on() -> None:
    def too_large() -> float:
        raise torch.OutOfMemoryError("of 80 GiB")

    runs = interleave([{"large": too_large, "small": lambda: 1.0}], repeats=3, seed=0, what="rounds")
    assert runs.failed == {"large": "out of memory"}
    assert runs.found == {"large": [], "small": [1.0, 1.0, 1.0]}


@pytest.mark.parametrize(("values", "found"), [([2.0], (2, 2, 2)), ([5.0, 1.0, 3.0], (3, 2, 4))])
def test_spread_has_median_and_quartiles(values: list[float], found: tuple[float, ...]) -> None:
    spread = Spread.of(values)
    assert (spread.median, spread.lower, spread.upper) == found
    assert spread.values == tuple(values)


def test_time_of_a_cut_is_in_none_of_the_modules(made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("small")
    prompt = make_prompt(model, locate(model), text_tokens=4)
    cut = FastV.cut_decoder

    def slow(*args: Any) -> Any:
        time.sleep(0.5)
        return cut(*args)

    monkeypatch.setattr(FastV, "cut_decoder", slow)
    with torch.inference_mode():
        model(**prompt.inputs)  # transformers puts hooks of its own on a model as it first runs
    hooks = _count_hooks(model)
    with prune(model, FastV(retained_tokens=192)):
        spent = time_parts(model, locate(model), prompt)
    assert tuple(spent) == PARTS
    assert min(spent.values()) > 0
    assert spent["rest"] > 0.5
    assert _count_hooks(model) == hooks


def _count_hooks(model: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_bench_sets_every_method_beside_its_oracle(made: Callable[..., Any]) -> None:
    model = made("small-next")
    parts = locate(model)
    prompt = _short(model)
    result = run_bench(model, parts, prompt, BenchSettings(("FastV", "ViTCoP"), (216, 50), repeats=2, new_tokens=2))
    whole, *rows = result.rows
    assert (result.visual_tokens, result.newline_tokens, result.text_tokens) == (432, 12, 6)
    assert [(row.method, row.retained_tokens) for row in rows] == [
        ("FastV", 216),
        ("ViTCoP", 216),
        ("FastV", 50),
        ("ViTCoP", 50),
    ]
    assert (whole.method, whole.average_tokens, whole.share_of_macs, whole.share_of_unpruned) == ("unpruned", 432, 1, 1)
    missed = rows.pop(2)
    assert missed.missing is not None
    assert "must be at least" in missed.missing
    for row in rows:
        assert row.prefill is not None
        assert row.oracle is not None
        assert row.over_oracle is not None
        assert row.parts is not None
        pairs = zip(row.prefill.values, row.oracle.values, row.over_oracle.values, strict=True)
        assert all(took / could == ratio for took, could, ratio in pairs)
        assert row.share_of_macs is not None
        assert 0 < row.share_of_macs < 0.6
    assert all(row.cache_bytes == row.planned_cache_bytes is not None for row in (whole, *rows))


def _short(model: Any) -> BenchPrompt:
    return make_prompt(model, locate(model), text_tokens=6, image_size=(336, 168))


def test_rows_come_back_from_what_is_stored() -> None:
    row = BenchRow("FastV", 64.0, prefill=Spread.of([1.0, 2.0]), parts={"tower": 1.0})
    plain = {**vars(row), "prefill": {**vars(row.prefill)}}
    assert BenchRow.load(plain) == row


def test_free_memory_is_less_than_there_is() -> None:
    free = free_bytes(torch.device("cpu"))
    if free is None:
        pytest.skip("this system does not say what is free")
    assert 2**20 < free < 2**45


def _events(*spans: tuple[float, float], device: DeviceType = DeviceType.CUDA, annotation: bool = False) -> list[Any]:
    return [
        SimpleNamespace(
            time_range=SimpleNamespace(start=start, end=end),
            device_type=device,
            is_user_annotation=annotation,
            kernels=[],
        )
        for start, end in spans
    ]


def test_gpu_is_busy_while_any_kernel_runs() -> None:
    kernels = _events((400, 500), (100, 200), (150, 250), (120, 130))
    others = _events((0, 1000), device=DeviceType.CPU) + _events((0, 2000), annotation=True)
    assert busy_seconds(kernels + others) == pytest.approx(250e-6)
    assert busy_seconds(others) is None


def test_busy_runs_are_of_the_model_as_it_is(made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("small-next")
    prompt, lengths = _short(model), list[int]()

    def profiled(call: Callable[[], None], *_: ProfilerActivity) -> list[Any]:
        handle = model.register_forward_pre_hook(
            lambda _, args, given: lengths.append(given["input_ids"].shape[1]), with_kwargs=True
        )
        call()
        handle.remove()
        return _events((0, 1000 * len(lengths)))

    monkeypatch.setattr(busy, "_profiled", profiled)
    parts, nothing = locate(model), dict.fromkeys(PARTS, 0.0)
    assert busy.measure_busy(model, parts, prompt.inputs) == busy.Busy(0.001, None, nothing)
    lengths.clear()
    assert busy.measure_busy(model, parts, prompt.inputs, new_tokens=9) == busy.Busy(0.001, 0.005 / 4, nothing)
    assert lengths == [prompt.inputs["input_ids"].shape[1], 1, 1, 1, 1]


def test_what_a_gpu_works_is_told_by_the_part_that_launched_it(
    made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made("small-next")
    prompt, launched = _short(model), Counter[str]()

    def profiled(call: Callable[[], None], *_: ProfilerActivity) -> list[Any]:
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
            call()
        events = list[Any]()
        for event in seen.events():  # as if each of these operators had launched a kernel of a microsecond
            launches = event.name in {"aten::addmm", "aten::mm", "aten::embedding"}
            kernels = [SimpleNamespace(duration=1.0)] * launches
            monkeypatch.setattr(event, "kernels", kernels)
            launched[event.name] += launches
            events.append(event)
        return events + _events((0, 1000))

    monkeypatch.setattr(busy, "_profiled", profiled)
    found = busy.measure_busy(model, locate(model), prompt.inputs)
    assert found is not None
    layers, tower = len(locate(model).decoder_layers), model.config.vision_config.num_hidden_layers
    counted = {name: round(1e6 * seconds) for name, seconds in found.parts.items()}
    assert counted == {
        "tower": 6 * tower + 1,  # six projections of each layer, and the embedding of positions
        "projector": 2,
        "layers": 7 * layers,
        "head": 1,
        "rest": 1,  # the embedding of tokens
    }
    assert sum(counted.values()) == launched.total()


def test_rows_of_a_gpu_have_a_table_of_their_own() -> None:
    none = dict.fromkeys(PARTS, 0.0)
    passes: dict[str, list[busy.Busy | None]] = {
        "unpruned": [busy.Busy(seconds, 0.004, none) for seconds in (0.016, 0.02, 0.018)],
        "FastV": [busy.Busy(0.009, None, none | {"rest": 0.0009})],
        "unseen": [None],
    }
    fields = busy.busy_fields(passes, "unpruned")
    assert [*fields] == ["unpruned", "FastV"]
    assert fields["unpruned"]["busy_prefill"] == 0.018
    assert fields["FastV"] == {
        "busy_prefill": 0.009,
        "busy_token": None,
        "busy_parts": none | {"rest": 0.0009},
        "busy_share_of_unpruned": 0.5,
    }
    row = BenchRow("FastV", 144.0, None, 144.0, prefill=Spread.of([0.036]), **fields["FastV"])
    assert busy_cells(row) == ["FastV", "144", "36 ± 0 ms", "9 ms", "25.0%", "50.0%", "10.0%", "", ""]
    assert len(busy_cells(row)) == len(BUSY_HEADINGS)
    assert busy_cells(BenchRow("FastV", 144.0, prefill=Spread.of([0.036]))) == []


def test_bars_are_as_long_as_what_they_stand_for() -> None:
    whole = BenchRow("unpruned", None, None, 576.0, prefill=Spread.of([8.0]), cache_bytes=4 * 2**20, macs=8 * 10**9)
    pruned = BenchRow("FastV", 144.0, None, 143.75, prefill=Spread.of([4.0]), cache_bytes=2**20, macs=10**9)
    result = BenchResult(576, 0, 60, (whole, pruned, BenchRow("FastV", 3.0, missing="too few")))
    drawn = [line.count("#") for line in bars(result, "#")]
    assert drawn == [0, WIDTH, WIDTH // 2, 0, WIDTH, WIDTH // 4, 0, WIDTH, WIDTH // 8]
    assert [cells[1:] for cells in lines(result)] == [
        ["8 s", "4 s (50.0%)"],
        ["4 MiB", "1 MiB (25.0%)"],
        ["8 G", "1 G (12.5%)"],
    ]


def test_bars_without_a_measured_unpruned_model_name_no_share() -> None:
    whole = BenchRow("unpruned", None, "out of memory", 576.0, macs=8 * 10**9)
    pruned = BenchRow("FastV", 144.0, None, 144.0, prefill=Spread.of([4.0]), cache_bytes=2**20, macs=10**9)
    result = BenchResult(576, 0, 60, (whole, pruned))
    assert [cells[1:] for cells in lines(result)] == [["4 s"], ["1 MiB"], ["1 G (12.5%)"]]
    assert len(bars(result)) == 6


def test_quarter_is_the_seven_billion_shape_made_smaller_alike() -> None:
    large, small = SHAPES["llava-1.5-7b"], SHAPES["quarter"]
    for part, heads in (("vision", 64), ("language", 128)):
        whole, quarter = getattr(large, part), getattr(small, part)
        assert (quarter.hidden, quarter.intermediate) == (whole.hidden // 4, whole.intermediate // 4)
        assert quarter.layers == whole.layers * 3 // 8
        assert quarter.hidden // quarter.heads == whole.hidden // whole.heads == heads
    assert isinstance(small.vision, Vision)
    assert isinstance(large.vision, Vision)
    assert small.vision.side == large.vision.side
