"""The script and the settings of the how-to page "Evaluate with VLMEvalKit", run by a stand-in for VLMEvalKit."""

import json
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import vitcop_llava
from vitcop_llava.tools.demo.scenes import render, sample_scene
from vitcop_llava.tools.model import loading

PAGE = (Path(__file__).parents[3] / "docs" / "howto" / "vlmevalkit.md").read_text(encoding="utf-8")
QUESTION = "What color is the square?"


def block(language: str) -> str:
    """The fenced block of the page in a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, str]]:
    """What each model of the page says of a scene, and its report: the demo model in the place of a checkpoint."""
    demo = loading.load(device="cpu", dtype="float32")
    demo.model.save_pretrained(tmp_path / "demo")
    demo.processor.save_pretrained(tmp_path / "demo")
    render(sample_scene(33)).save(tmp_path / "scene.png")
    message = [{"type": "image", "value": str(tmp_path / "scene.png")}, {"type": "text", "value": QUESTION}]
    found = {}

    def main() -> None:
        """Build models from the settings as VLMEvalKit's run.py does."""
        for name, settings in json.loads(block("json"))["model"].items():
            given = settings | {"model_path": str(tmp_path / "demo"), "max_new_tokens": 4}
            model = getattr(vlm, given.pop("class"))(**given)
            found[name] = (model.generate_inner(message, "POPE"), str(model.pruner.report))

    vlm: Any = ModuleType("vlmeval.vlm")
    vlm.LLaVA_Next = type("LLaVA_Next", (), {})
    vlmeval: Any = ModuleType("vlmeval")
    vlmeval.vlm = vlm
    run: Any = ModuleType("run")
    run.main = main
    for module in (vlmeval, vlm, run):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    script = tmp_path / "run_vitcop.py"
    script.write_text(block("python"), encoding="utf-8")
    runpy.run_path(str(script), run_name="__main__")
    return found


def test_script_answers_as_the_model_by_itself(answers: dict[str, tuple[str, str]]) -> None:
    demo = loading.load(device="cpu", dtype="float32")
    asked = [{"type": "image", "image": render(sample_scene(33))}, {"type": "text", "text": QUESTION}]
    inputs = demo.processor.apply_chat_template(
        [{"role": "user", "content": asked}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    methods = {
        "llava-1.5-7b": vitcop_llava.ViTCoP(retention_ratio=1.0),
        "llava-1.5-7b-vitcop-64": vitcop_llava.ViTCoP(retained_tokens=64),
        "llava-1.5-7b-visionzip-64": vitcop_llava.VisionZip(retained_tokens=64),
    }
    assert {*answers} == {*methods}
    for name, method in methods.items():
        with vitcop_llava.prune(demo.model, method) as pruner:
            output = demo.model.generate(**inputs, do_sample=False, max_new_tokens=4)
        said = demo.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answers[name] == (said.strip(), str(pruner.report))
        assert said.strip()
