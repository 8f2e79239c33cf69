"""What is compared and what it costs: question sets, variants, plans, and the file of answers."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vitcop_core import FastV, SparseVLM, ViTCoP
from vitcop_core.journal import partial_path
from vitcop_llava import prune
from vitcop_llava.families import locate
from vitcop_llava.tools.comparison.answers import Answered, AnswerFile
from vitcop_llava.tools.comparison.costs import CostCounter
from vitcop_llava.tools.comparison.questions import Fault, Item, chunks, demo_questions
from vitcop_llava.tools.comparison.variants import (
    UNPRUNED,
    Variant,
    at_budgets,
    equal_budget_variants,
    find_problem,
    nearest_tokens,
    preset,
)
from vitcop_llava.tools.demo.build import demo_processor, initialised_model
from vitcop_llava.tools.demo.language import FIRST_TRAINING_SEED
from vitcop_llava.tools.demo.questions import KINDS
from vitcop_llava.tools.model.answer import prepare, prepare_batch
from vitcop_llava.tools.model.loading import Loaded

NINTH = {"1/9": {"retention_ratio": Fraction(1, 9)}}
BUDGETS = {f"{share}": {"retention_ratio": share} for share in (Fraction(1, 3), Fraction(1, 9), Fraction(1, 18))}
SIZES = [(96, 96), (40, 131), (200, 30)]


@pytest.fixture(scope="module")
def demo() -> Loaded:
    torch.manual_seed(0)
    model = initialised_model(12).eval()
    return Loaded(model, demo_processor(12), locate(model), "demo", True)


@pytest.fixture(scope="module")
def tiled(next_model: Any, next_processor: Any) -> Loaded:
    return Loaded(next_model, next_processor, locate(next_model), "next", False)


def test_demo_questions_are_held_out_and_the_same_every_time() -> None:
    asked = demo_questions(120)
    assert asked == demo_questions(120)
    assert asked.items[:50] == demo_questions(50).items
    assert [item.number for item in asked.items] == list(range(1, 121))
    assert {item.kind for item in asked.items} == set(KINDS)
    assert all(item.scene is not None and item.scene < FIRST_TRAINING_SEED for item in asked.items)
    assert asked.digest == demo_questions(120).digest
    assert asked.digest != demo_questions(119).digest


def test_questions_about_one_scene_are_one_group() -> None:
    items = demo_questions(30).items
    assert len({item.group for item in items}) == len({item.scene for item in items}) < 10
    one, same, other = (Item(n, "?", ("x",), (Path(name),)) for n, name in enumerate("aab"))
    assert one.group == same.group != other.group


def test_equal_budgets_hold_all_methods(demo: Loaded) -> None:
    variants = preset("equal-budgets", demo.parts, BUDGETS)
    labels = list(dict.fromkeys(variant.label for variant in variants))
    assert labels == ["ViTCoP", "VisPruner", "DivPrune", "VisionZip", "SparseVLM", "PyramidDrop", "FastV"]
    units = demo.parts.tiling.units
    for variant in variants:
        assert variant.method is not None
        if find_problem(variant, demo.model) is None:
            average = variant.method.plan(8, units).average_tokens
            assert Fraction(variant.retain) * 144 - 1 < average <= Fraction(variant.retain) * 144
    reached = {variant.label for variant in variants if find_problem(variant, demo.model) is None}
    assert reached == set(labels)


def test_presets_of_tables_are_the_papers_on_a_deep_model(demo: Loaded, build: Any) -> None:
    assert [v.label for v in preset("table-4", demo.parts, NINTH)][:2] == ["ViTCoP", "w/o K-norm Guidance"]
    sevens = [v.method for v in preset("table-7", demo.parts, NINTH)]
    assert [m.layers for m in sevens if isinstance(m, ViTCoP)] == [(2, 6), (1, 6), (3, 6), (2, 4), (2, 7)]


def test_published_settings_need_the_papers_number_of_tokens(demo: Loaded, tiled: Loaded) -> None:
    with pytest.raises(ValueError, match=r"576 visual tokens an image, as LLaVA-1\.5 has, got 144"):
        preset("published", demo.parts, {})
    with pytest.raises(ValueError, match=r"576 visual tokens an image, .* got up to 180"):
        preset("published", tiled.parts, {})
    with pytest.raises(ValueError, match="preset must be one of equal-budgets, table-4"):
        preset("table-5", demo.parts, {})


@pytest.mark.parametrize("label", ["ViTCoP", "FastV", "SparseVLM", "PyramidDrop"])
def test_nearest_budget_can_be_met_and_none_nearer(demo: Loaded, label: str) -> None:
    template: dict[str, Any] = {label: equal_budget_variants()[label]}
    if label == "ViTCoP":  # its default layers reach this
        template = {label: ViTCoP(retained_tokens=1, layers=(2, 6))}
    variant = at_budgets(template, {"1/18": {"retention_ratio": Fraction(1, 18)}})[0]
    layers, layouts = demo.parts.shape.num_layers, [demo.parts.tiling.units]
    nearest = nearest_tokens(variant, layers, layouts)
    assert nearest is not None
    tries = at_budgets(template, {str(n): {"retained_tokens": n} for n in range(1, nearest + 1)})
    assert [find_problem(each, demo.model) is None for each in tries] == [False] * (nearest - 1) + [True]
    assert nearest_tokens(tries[-1], layers, layouts) is None
    assert nearest_tokens(Variant("FastV", "30", FastV(keep=30)), layers, layouts) is None
    assert nearest_tokens(variant, layers, []) is None


def test_nearest_budget_is_one_of_all_images() -> None:
    """One that only the image can meet which fails first helps nobody."""
    layouts = [(2880,), (2160,), (1152,), (144,)]
    assert nearest_tokens(Variant("FastV", "60", FastV(retained_tokens=60)), 32, layouts) is None
    fitting = nearest_tokens(Variant("FastV", "60", FastV(retained_tokens=60)), 32, layouts[:2])
    assert fitting is not None
    for units in layouts[:2]:
        FastV(retained_tokens=fitting).plan(32, units)


@pytest.mark.parametrize("which", ["demo", "tiled"])
@pytest.mark.parametrize(
    "method", [ViTCoP(retention_ratio=0.2, vic_features="vision_hidden"), SparseVLM(retention_ratio=0.3), None]
)
def test_costs_equal_the_report_of_a_prefill(request: pytest.FixtureRequest, which: str, method: Any) -> None:
    loaded: Loaded = request.getfixturevalue(which)
    counter = CostCounter(method, loaded.parts, loaded.dtype.itemsize)
    for size in SIZES:
        inputs = prepare(loaded, [Image.linear_gradient("L").resize(size[::-1]).convert("RGB")], "What is it?")
        text = int((inputs["input_ids"] != loaded.parts.image_token_id).sum())
        with torch.inference_mode(), prune(loaded.model, method or ViTCoP(retention_ratio=1)) as pruner:
            loaded.model(**inputs)
        cost = counter.mean([((size,), text), ((size,), text)])
        assert (cost.macs, cost.kv_bytes) == (pruner.report.macs()[0], pruner.report.kv_bytes()[0])
        plan = pruner.report.rows[0].plan
        assert plan is not None
        assert (cost.tokens, cost.tokens_per_layer) == (float(plan.average_tokens), plan.tokens_per_layer)


def test_batch_of_questions_is_padded_on_the_left(tiled: Loaded) -> None:
    pictures = [Image.linear_gradient("L").resize(size[::-1]).convert("RGB") for size in SIZES]
    asked = [(pictures[:1], "What is it?"), (pictures[1:], "What is it, and where, and why?")]
    batch = prepare_batch(tiled, asked)
    for row, (images, question) in enumerate(asked):
        alone = prepare(tiled, images, question)["input_ids"][0]
        assert batch["input_ids"][row, -len(alone) :].tolist() == alone.tolist()
        assert int(batch["attention_mask"][row].sum()) == len(alone)


def test_answer_file_resumes_whole_batches(tmp_path: Path) -> None:
    items = demo_questions(5).items
    batches, header, path = chunks(items, 2), {"model": "x"}, tmp_path / "answers.jsonl"
    partial = partial_path(path)
    done = [Answered(item, ((9, 9),), 7, {"unpruned": "red"}) for item in items]
    with AnswerFile(path, header, batches, resume=True) as file:  # there is nothing to go on with, so it begins
        assert file.found(batches[0]) is None
        file.add(done[:2])
        file.add([done[2], Fault(4, "broken")])
    partial.write_text(partial.read_text() + '{"number": 5, "si')  # torn
    with AnswerFile(path, header, batches, resume=True) as again:
        assert [again.found(batch) for batch in batches] == [done[:2], [done[2], Fault(4, "broken")], None]
    partial.write_text("".join(partial.read_text().splitlines(keepends=True)[:4]))  # half of the second batch
    with AnswerFile(path, header, batches, resume=True) as half:
        assert [half.found(batch) is None for batch in batches] == [False, True, True]
        assert len(partial.read_text().splitlines()) == 3
        half.add([done[2], Fault(4, "broken")])
        half.add([done[4]])
        assert not path.exists()
        half.finish()
    whole = path.read_text()
    assert [json.loads(line).get("number") for line in whole.splitlines()] == [None, 1, 2, 3, 4, 5]
    assert not partial.exists()
    with AnswerFile(path, header, batches, resume=True) as whole_again:
        assert whole_again.found(batches[2]) == [done[4]]
        whole_again.finish()
    assert path.read_text() == whole


@pytest.mark.parametrize(
    ("field", "value"),
    [("number", "1"), ("sizes", None), ("sizes", [5]), ("sizes", [[9, "9"]]), ("text_tokens", "7"), ("said", ["red"])],
)
def test_line_that_is_no_answer_is_asked_again(tmp_path: Path, field: str, value: Any) -> None:
    items = demo_questions(2).items
    batches, header, path = chunks(items, 1), {"model": "x"}, tmp_path / "answers.jsonl"
    with AnswerFile(path, header, batches, resume=False) as file:
        for item in items:
            file.add([Answered(item, ((9, 9),), 7, {"unpruned": "red"})])
    first, changed, last = partial_path(path).read_text().splitlines()
    partial_path(path).write_text("\n".join([first, json.dumps(json.loads(changed) | {field: value}), last, ""]))
    with AnswerFile(path, header, batches, resume=True) as again:
        assert [again.found(batch) is None for batch in batches] == [True, False]


def test_answer_file_refuses_another_run(tmp_path: Path) -> None:
    path, batches = tmp_path / "answers.jsonl", chunks(demo_questions(2).items, 2)
    with (
        AnswerFile(path, {"model": "x"}, batches, resume=False),
        pytest.raises(ValueError, match="resume must go on with the same settings"),
    ):
        AnswerFile(path, {"model": "y"}, batches, resume=True)


def test_unpruned_has_no_problem(demo: Loaded) -> None:
    assert find_problem(UNPRUNED, demo.model) is None
    assert UNPRUNED.name == "unpruned"
