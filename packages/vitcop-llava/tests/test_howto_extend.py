"""The how-to pages "Add a method" and "Add a model family", followed literally from outside of the packages."""

import importlib
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import vitcop_llava
from vitcop_core import DecoderCut, DecoderView, Method, Plan, Selection, ViTCoP, find_method, parsing
from vitcop_core.diagnostics import Diagnosis
from vitcop_llava import ImagePrefix, families
from vitcop_llava.families import base
from vitcop_llava.tools.cli import app
from vitcop_llava.tools.demo.build import demo_config, demo_processor, initialised_model, save_demo
from vitcop_llava.tools.demo.scenes import render, sample_scene

Make = Callable[..., Tensor]
PAGES = Path(__file__).parents[3] / "docs" / "howto"
MODULES = {"add-method.md": "loud", "add-family.md": "peep"}
QUESTIONS = [[5, 6, 7, 8], [9], [10, 11]]
FEW: dict[str, list[object]] = {
    "show": [],
    "compare": ["--limit", 6, "--timing", 0, "--max-new-tokens", 2, "--json"],
}


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    text = (PAGES / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on the path with the modules of both pages, and a distribution that has their entry points."""
    folder = tmp_path_factory.mktemp("site")
    lines = []
    for page, module in MODULES.items():
        (folder / f"{module}.py").write_text(blocks(page, "python")[0], encoding="utf-8")
        (content,) = blocks(page, "toml")
        for group, entries in tomllib.loads(content)["project"]["entry-points"].items():
            lines += [f"[{group}]", *(f"{name} = {place}" for name, place in entries.items())]
    information = folder / "outside-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n", encoding="utf-8")
    (information / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield folder
    sys.path.remove(str(folder))
    parsing._REGISTERED.clear()
    families._FAMILIES.pop("PeepForConditionalGeneration", None)


@pytest.fixture(scope="module")
def peep() -> Any:
    """A model of the page's family with random weights."""
    module: Any = importlib.import_module("peep")
    usual = initialised_model(12)
    settings = {name: value for name, value in demo_config(12).to_dict().items() if name != "model_type"}
    model = module.PeepForConditionalGeneration(module.PeepConfig(**settings))
    model.load_state_dict(usual.state_dict())
    return model.eval()


@pytest.fixture(scope="module")
def folder(peep: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages' commands find in the current folder: a checkpoint, a picture and questions."""
    place = tmp_path_factory.mktemp("current")
    save_demo(peep, demo_processor(12), place / "peep-checkpoint")
    assert json.loads((place / "peep-checkpoint" / "config.json").read_text())["model_type"] == "peep"
    render(sample_scene(3)).save(place / "scene.png")
    line = {"image": "scene.png", "question": "What shape is green?", "answer": "cross"}
    (place / "questions.jsonl").write_text("".join(json.dumps(line | {"id": number}) + "\n" for number in range(3)))
    return place


def commands(page: str) -> list[list[str]]:
    found = [shlex.split(line)[2:] for block in blocks(page, "console") for line in block.splitlines()]
    assert {command[0] for command in found} == {"show", "compare"}
    return found


@pytest.mark.parametrize(
    ("page", "number"), [(page, number) for page in MODULES for number in range(len(commands(page)))]
)
def test_command_of_a_page_runs(page: str, number: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    command = commands(page)[number]
    given = [*command, *map(str, FEW[command[0]]), "--device", "cpu", "--force"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    if command[0] == "compare":
        rows = json.loads(result.stdout)["comparison"]["variants"]
        labels = ["Loud", "ViTCoP"] if page == "add-method.md" else ["FastV", "ViTCoP"]
        assert {row["label"] for row in rows} >= {"unpruned", *labels}
        assert [row["problem"] for row in rows if row["label"] in labels and row["retain"] in ("40%", "1/3")] == [
            None
        ] * 2
    else:
        assert f"after {'Loudest, before layer 1' if page == 'add-method.md' else 'Stage I, before'}" in result.stdout


@pytest.mark.parametrize("page", MODULES)
def test_python_of_a_page_runs(
    page: str, peep: Any, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parsing, "_REGISTERED", {})
    monkeypatch.delitem(families._FAMILIES, "PeepForConditionalGeneration", raising=False)
    inputs = demo_processor(12)(images=render(sample_scene(3)), text="<image> What?", return_tensors="pt")
    for text in blocks(page, "python")[1:]:
        exec(compile(text, page, "exec"), {"model": peep, "inputs": inputs})
    said = capsys.readouterr().out
    assert ("Loudest -> " if page == "add-method.md" else "Stage III -> ") in said
    assert page != "add-method.md" or parsing._REGISTERED["loud"].__name__ == "Loud"


def loud(share: float = 0.4) -> Any:
    """The page's method, found by its entry point."""
    return find_method("loud", retention_ratio=share)


def test_method_is_found_by_its_name() -> None:
    parsing._REGISTERED.clear()
    assert "loud" in parsing.method_names()
    method = find_method("LOUD(layer=3)", retained_tokens=64)
    assert (type(method).__module__, repr(method)) == (
        "loud",
        "Loud(retained_tokens=64, retention_ratio=None, layer=3)",
    )
    with pytest.raises(ValueError, match="setting must be one of layer for Loud, got 'depth'"):
        find_method("loud(depth=3)", retained_tokens=64)
    with pytest.raises(ValueError, match=r"text must be one of vitcop, .*, earlyvitcop, loud, got 'silent'"):
        find_method("silent", retained_tokens=64)


@pytest.mark.parametrize(
    ("name", "kind"), [("vitcop", ViTCoP), ("a-b", ViTCoP), ("mine", int), ("mine", Method)], ids=str
)
def test_method_that_cannot_be_registered_is_refused(name: str, kind: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"kind must be a dataclass|name must be a Python name"):
        parsing.register_method(name, kind)


def test_own_method_holds_the_properties_of_all(model: Any, prompt: Make, pictures: Make, pad: Any) -> None:
    rows, method = [prompt(2, "image", 8), prompt("image", 3, "image", 4, seed=1), prompt(20, seed=2)], loud()
    batch = pad(rows)
    with vitcop_llava.prune(model, method) as pruner:
        logits = model(**batch, pixel_values=pictures(3)).logits
        report: Any = pruner.report
        kept = [pruner.survivors(row).stages[0] for row in range(2)]
        for row, images in zip(rows, (slice(0, 1), slice(1, 3), None), strict=True):
            given = {} if images is None else {"pixel_values": pictures(3)[images]}
            alone = model(input_ids=row, **given).logits
            number = next(k for k, each in enumerate(rows) if each is row)
            torch.testing.assert_close(logits[number, -row.shape[1] :], alone[0], rtol=0, atol=2e-5)
    assert [(stage.name, stage.layer) for stage in report.rows[0].stages] == [("Loudest", 2)]
    assert [len(stage.patches) for stage in kept] == [row.plan.decoder[0].keep for row in report.rows[:2]]
    whole = model(**batch, pixel_values=pictures(3)).logits
    with vitcop_llava.prune(model, loud(1)):
        assert torch.equal(model(**batch, pixel_values=pictures(3)).logits, whole)


def test_own_family_is_pruned_as_the_one_that_it_derives_from(peep: Any, pictures: Make) -> None:
    usual = initialised_model(12).eval()
    usual.load_state_dict(peep.state_dict())
    inputs = demo_processor(12)(images=render(sample_scene(3)), text="<image> What?", return_tensors="pt")
    found = []
    for each in (peep, usual):
        with vitcop_llava.prune(each, ViTCoP(retention_ratio=1 / 3)):
            found.append(each(**inputs).logits)
    assert torch.equal(*found)
    assert sys.modules["peep"].locate is families._FAMILIES["PeepForConditionalGeneration"]


def test_class_of_a_supported_name_from_elsewhere_is_no_family() -> None:
    foreign = type("LlavaForConditionalGeneration", (torch.nn.Module,), {"__module__": "elsewhere"})()
    with pytest.raises(TypeError, match=r"model must be one of .*, got a LlavaForConditionalGeneration"):
        vitcop_llava.prune(foreign, ViTCoP(retained_tokens=64))


def derived(**members: Any) -> Any:
    """The page's method with other members."""
    base: Any = type(loud())
    kind: Any = dataclass(frozen=True)(type("Derived", (base,), members))
    return kind(retention_ratio=0.4)


def packed_plan(self: Any, num_layers: int, visual_tokens: Any, *, images: int = 1) -> Plan:
    plan = super(type(self), self).plan(num_layers, visual_tokens, images=images)
    cuts = tuple(DecoderCut(cut.layer, cut.keep, "packed", pack_positions=True) for cut in plan.decoder)
    return Plan(plan.num_layers, plan.units, plan.vision, cuts)


@pytest.mark.parametrize("kind", ["loud", "packed"])
def test_prefix_of_an_own_method_answers_as_from_scratch(
    model: Any, prompt: Make, pictures: Make, tmp_path: Path, kind: str
) -> None:
    method, path = loud() if kind == "loud" else derived(plan=packed_plan), tmp_path / "image.safetensors"
    how: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "output_logits": True}
    how |= {"return_dict_in_generate": True}
    ids = prompt(3, "image", 2)
    with vitcop_llava.prune(model, method):
        prefix = vitcop_llava.encode_image(model, ids, pictures())
        prefix.save(path)
        loaded = ImagePrefix.load(path, model)
        asked, again = (model.generate(**which.inputs(QUESTIONS), **how) for which in (prefix, loaded))
        for row, question in enumerate(QUESTIONS):
            whole = torch.cat([ids, torch.tensor([question])], dim=1)
            scratch = model.generate(
                input_ids=whole, attention_mask=torch.ones_like(whole), pixel_values=pictures(), **how
            )
            for one, other in zip(asked.logits, scratch.logits, strict=True):
                torch.testing.assert_close(one[row], other[0], rtol=0, atol=2e-5)
    assert torch.equal(asked.sequences, again.sequences)
    assert all(torch.equal(*pair) for pair in zip(asked.logits, again.logits, strict=True))
    assert loaded.report == prefix.report
    assert loaded.report.rows[0].stages[0].name == "Loudest"


def test_prefix_of_a_method_that_depends_on_the_question_is_refused(model: Any, prompt: Make, pictures: Make) -> None:
    method = derived(cuts_depend_on_question=True)
    with pytest.raises(ValueError, match=r"method must have cuts that look at the image alone, got Derived\("):
        vitcop_llava.encode_image(model, prompt(3, "image", 2), pictures(), method=method)


@pytest.mark.parametrize("needs", [True, False])
def test_cut_is_shown_what_its_method_says_that_it_needs(model: Any, prompt: Make, pictures: Make, needs: bool) -> None:
    shown: list[Any] = []

    def cut_decoder(self: Any, cut: DecoderCut, seen: DecoderView, keeps: Tensor | None = None) -> Selection:
        shown.append((seen.labels, seen.num_clusters, seen.prompt() if needs else None))
        if not needs:
            with pytest.raises(RuntimeError, match=r"is kept where Method\.needs_prompt says that a cut reads it"):
                seen.prompt()
        selection: Selection = super(type(self), self).cut_decoder(cut, seen, keeps)
        return selection

    said = {name: lambda self, cut: needs for name in ("needs_labels", "needs_prompt")}
    with vitcop_llava.prune(model, derived(cut_decoder=cut_decoder, **said)):
        model(input_ids=prompt(3, "image", 8), pixel_values=pictures())
    ((labels, clusters, view),) = shown
    if needs:
        assert (labels.tolist(), clusters) == ([[*range(144)]], 144)
        assert (view.visual.shape, view.text.shape[2], view.text_lengths.tolist()) == ((1, 144, 32), 32, [8])
    else:
        assert (labels, clusters, view) == (None, 0, None)


def test_report_tells_what_a_method_diagnoses(model: Any, prompt: Make, pictures: Make, budget: Any) -> None:
    base: Any = type(budget())
    given: list[Tensor] = []

    def diagnose(self: Any, keys: Tensor) -> Diagnosis:
        given.append(keys)
        return Diagnosis(0.5, "the image is too beautiful")

    members = {"diagnose": diagnose, "cut_title": lambda self, plan, number: f"Step {number + 1}"}
    kind: Any = dataclass(frozen=True)(type("Derived", (base,), members))
    with vitcop_llava.prune(model, kind(retention_ratio=1 / 9, cutoff_distance=3.0)) as pruner:
        model(input_ids=prompt(3, "image", 8), pixel_values=pictures())
        with pytest.warns(vitcop_llava.FeatureScaleWarning, match="too beautiful"):
            report = pruner.report
    assert report.distance_ratio == 0.5
    assert [stage.name for stage in report.rows[0].stages] == ["Step 1", "Step 2", "Step 3"]
    assert given[0].shape == (report.rows[0].stages[0].tokens, 32)


def test_former_name_of_what_a_family_says_of_clips_warns() -> None:
    with pytest.warns(DeprecationWarning, match="will go: import VideoParts"):
        assert base.Video is base.VideoParts
