"""``vitcop ask`` on a model with random weights: what it prints, its JSON, and every mistake it should name."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner, Result

from vitcop_llava.tools.cli import app
from vitcop_llava.tools.demo.build import demo_processor

QUESTION = "What color is the circle?"
TOKENS = 144


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "image.png"
    Image.linear_gradient("L").save(path)
    return path


def ask(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["ask", *map(str, arguments), "--device", "cpu", "--max-new-tokens", "3"])


def ask_json(*arguments: object) -> dict[str, Any]:
    result = ask(*arguments, "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def test_ask_prints_answer_stages_and_savings(checkpoint: Path, image: Path) -> None:
    result = ask(image, QUESTION, "--model", checkpoint, "--retain", "20%")
    assert result.exit_code == 0, result.output
    stages = ("Stage I: layers 0-0", "Stage II: layers 1-5", "Stage III: layers 6-7")
    savings = ("19.6%", "GMACs", "MiB", "time to first token", "wall time of a single run")
    for words in (QUESTION, "answer", "not run", *stages, *savings):
        assert words in result.stdout
    assert "this is the demo model" in result.stderr


def test_ask_json_has_everything(checkpoint: Path, image: Path) -> None:
    content = ask_json(image, QUESTION, "--model", checkpoint, "--retain", "20%")
    assert (content["question"], content["images"], content["method"]) == (QUESTION, [str(image)], "vitcop")
    assert content["retain"] == "20.0%"
    assert content["model"]["visual_tokens_per_image"] == content["visual_tokens"] == TOKENS
    assert content["model"]["source"] == str(checkpoint)
    assert [stage["layer"] for stage in content["pruned"]["stages"]] == [None, 1, 6]
    assert content["pruned"]["tokens_per_layer"] == [54, 32, 32, 32, 32, 32, 6, 6]
    assert content["pruned"]["prefill_macs"] < content["unpruned"]["prefill_macs"]
    assert content["pruned"]["cache_bytes"] < content["unpruned"]["cache_bytes"]
    assert content["pruned"]["prefill_seconds"] > 0
    assert content["pruned"]["generated_tokens"] <= 3
    assert content["unpruned"]["answer"] is None
    assert any("demo model" in note for note in content["notes"])


def test_ask_compare_runs_the_unpruned_model(checkpoint: Path, image: Path) -> None:
    content = ask_json(image, QUESTION, "--model", checkpoint, "--compare")
    assert isinstance(content["unpruned"]["answer"], str)
    assert content["unpruned"]["prefill_seconds"] > 0
    assert content["warmed_up"] is True
    result = ask(image, QUESTION, "--model", checkpoint, "--compare")
    assert "not run" not in result.stdout
    assert "after a warm-up of each" in result.stdout


def test_ask_default_is_a_ninth(checkpoint: Path, image: Path) -> None:
    content = ask_json(image, QUESTION, "--model", checkpoint)
    assert content["retain"] == "11.1%"
    assert 0.9 * TOKENS / 9 < content["pruned"]["average_tokens"] <= TOKENS / 9


@pytest.mark.parametrize(("retain", "most"), [("40", 40.0), ("27.5", 27.5), ("50%", 72.0)])
def test_ask_keeps_what_retain_says(checkpoint: Path, image: Path, retain: str, most: float) -> None:
    content = ask_json(image, QUESTION, "--model", checkpoint, "--retain", retain)
    assert most - 2 < content["pruned"]["average_tokens"] <= most


@pytest.mark.parametrize("retain", ["all", "100%", "144"])
def test_ask_can_keep_everything(checkpoint: Path, image: Path, retain: str) -> None:
    content = ask_json(image, QUESTION, "--model", checkpoint, "--retain", retain, "--compare")
    assert content["pruned"]["stages"] == []
    assert content["pruned"]["average_tokens"] == TOKENS
    assert content["pruned"]["answer"] == content["unpruned"]["answer"]


def test_ask_puts_several_images_in_one_prompt(checkpoint: Path, image: Path) -> None:
    content = ask_json(image, image, QUESTION, "--model", checkpoint, "--retain", "20%")
    assert content["visual_tokens"] == 2 * TOKENS
    assert content["images"] == [str(image)] * 2


def test_ask_takes_options_before_the_images(checkpoint: Path, image: Path) -> None:
    assert ask_json("--model", checkpoint, image, QUESTION)["question"] == QUESTION


def test_ask_without_a_chat_template_uses_the_format_of_llava(checkpoint: Path, image: Path, tmp_path: Path) -> None:
    plain = Path(shutil.copytree(checkpoint, tmp_path / "plain"))
    (plain / "chat_template.jinja").unlink()
    one, other = (ask_json(image, QUESTION, "--model", folder) for folder in (checkpoint, plain))
    assert one["pruned"]["answer"] == other["pruned"]["answer"]
    assert one["text_tokens"] == other["text_tokens"]


def test_ask_names_a_chat_template_without_images(checkpoint: Path, image: Path, tmp_path: Path) -> None:
    odd = Path(shutil.copytree(checkpoint, tmp_path / "odd"))
    (odd / "chat_template.jinja").write_text("USER: what? ASSISTANT:")
    result = ask(image, QUESTION, "--model", odd)
    assert result.exit_code == 2
    assert "a chat template with a place for each of 1 images, got 0" in result.stderr


@pytest.mark.parametrize("template", ["{% if %}", "{{ messages[9].role }}", "{{ 1 / 0 }}", "{{ [] + 1 }}"])
def test_ask_names_a_chat_template_that_fails(checkpoint: Path, image: Path, tmp_path: Path, template: str) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    (folder / "chat_template.jinja").write_text(template)
    result = ask(image, QUESTION, "--model", folder)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: model must have a chat template that can be used, got one that fails: ")


def test_ask_refuses_more_images_than_the_context_holds(checkpoint: Path, image: Path) -> None:
    result = ask(*[image] * 15, QUESTION, "--model", checkpoint)
    assert result.exit_code == 2
    assert "the model's context of 2048 tokens" in result.stderr


def test_ask_names_unknown_words(checkpoint: Path, image: Path) -> None:
    notes = ask_json(image, "What color is the zebra, José?", "--model", checkpoint)["notes"]
    assert notes[-1].endswith("cannot read: zebra, José")


def test_ask_prints_model_text_without_control_characters(checkpoint: Path, image: Path) -> None:
    result = ask(image, "What is \x1b[31mred?", "--model", checkpoint)
    assert "\x1b" not in result.stdout
    assert "[31m" in result.stdout  # nor is it taken for markup


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "at least one image or video, then the question, got neither"),
        ([QUESTION], f"got the question '{QUESTION}' alone"),
        (["{image}"], "image.png alone"),
        (["{image}", "{image}"], "QUESTION must be a text"),
        (["{image}", " "], "QUESTION must not be empty"),
        (["{image}", "Where is <image>?"], "must not hold the placeholder"),
        (
            ["{image}", QUESTION, "--retain", "many"],
            "--retain must be a number of tokens (64), a share (1/9 or 11.1%)",
        ),
        (["{image}", QUESTION, "--retain", "0%"], "--retain must be above 0 and at most 100 as a percentage, got '0%'"),
        (["{image}", QUESTION, "--retain", "101%"], "at most 100"),
        (["{image}", QUESTION, "--retain", "0.1"], "(a share is written 11.1%), got '0.1'"),
        (["{image}", QUESTION, "--retain", "-5"], "--retain must be"),
        (["{image}", QUESTION, "--retain", "nan"], "--retain must be"),
        (["{image}", QUESTION, "--retain", "1%"], "--retain 1.0%: it must be from "),
        (["{image}", QUESTION, "--retain", "130"], "--retain 130: it must be from 8 to 115 of the 144 visual tokens"),
        (["{image}", QUESTION, "--retain", "9" * 400], "--retain must be a number of tokens (64)"),
        (["{image}", QUESTION, "--retain", "9" * 5000], "--retain must be a number of tokens (64)"),
        (["{image}", QUESTION, "--retain", "9" * 5000 + "%"], "--retain must be a number of tokens (64)"),
        (["{image}", QUESTION, "--retain", "9" * 5000 + "/9"], "--retain must be a number of tokens (64)"),
        (["{image}", QUESTION, "--retain", "0." + "0" * 400 + "1%"], "--retain must be a number of tokens (64)"),
        (["{image}", QUESTION, "--retain", "1e3"], "--retain must be a number of tokens (64)"),
        (["{image}", QUESTION, "--retain", "."], "--retain must be a number of tokens (64)"),
        (["{image}", QUESTION, "--retain", "0.000000001%"], "it must be from 0.0546 (5.46%) to 0.8 (80%), or 1,"),
        (
            ["{image}", QUESTION, "--retain", "999999999"],
            "--retain 999999999: it must be at most the 144 visual tokens",
        ),
        (["{image}", QUESTION, "--method", "vitcop(layers={{[]:1}})"], "--method: layers must be a plain value"),
        (["{image}", QUESTION, "--method", "fastv(layer=0x" + "f" * 6000 + ")"], "--method must be at most 1000"),
        (["{image}", QUESTION, "--method", "fastv(layer=0x" + "f" * 900 + ")"], "--method: layer must be an integer"),
        (["{image}", QUESTION, "--method", "vitcop(cutoff_distance=1e999)"], "--method: cutoff_distance must be"),
        (["{image}", QUESTION, "--retain", "145"], "--retain 145: it must be at most the 144"),
        (
            ["{image}", QUESTION, "--method", "magic"],
            "--method must be one of vitcop, fastv, pyramiddrop, sparsevlm, visionzip, divprune, vispruner, "
            "earlyvitcop, got 'magic'",
        ),
        (["{image}", QUESTION, "--method", "vitcop, fastv"], "--method must be one method, got 'vitcop, fastv'"),
        (
            ["{image}", QUESTION, "--method", "fastv(depth=2)"],
            "--method: setting must be one of keep, layer for FastV, got 'depth'",
        ),
        (["{image}", QUESTION, "--method", "fastv(layer=0)"], "--method: layer must be"),
        (["{image}", QUESTION, "--method", "vitcop(layers=(1,60))"], "--method: layers must be below the model's 8"),
        (["{image}", QUESTION, "--method", "vitcop(cutoff_distance=nan)"], "or (1, 6), got 'nan'"),
        (["{image}", QUESTION, "--max-new-tokens", "0"], "got 0"),
        (["{image}", QUESTION, "--max-new-tokens", "some"], "got some"),
        (["{image}", QUESTION, "--method", "fastv(retained_tokens=9)"], "the budget of FastV comes from --retain"),
        (["{image}", QUESTION, "--device", "gpu"], "--device must be auto, cpu, cuda, cuda:N or mps, got 'gpu'"),
        (["{image}", QUESTION, "--dtype", "int8"], "--dtype must be auto, float32, float16, bfloat16, got 'int8'"),
        (["none.png", QUESTION], "image must be an existing file, got none.png"),
        (["{folder}", QUESTION], "image must be a file, got the folder"),
        (["{folder}/config.json", QUESTION], "must be one of PNG, JPEG"),
    ],
)
def test_ask_names_a_mistake(checkpoint: Path, image: Path, arguments: list[str], said: str) -> None:
    given = [argument.format(image=image, folder=checkpoint) for argument in arguments]
    options = ["--model", str(checkpoint), "--json"]
    result = CliRunner().invoke(app, ["ask", *given, *options, *([] if "--device" in given else ["--device", "cpu"])])
    assert result.exit_code == 2
    error = json.loads(result.stdout)
    assert said in error["error"]
    assert error["exit_code"] == 2
    assert result.stderr == ""


def test_ask_takes_settings_of_a_method(checkpoint: Path, image: Path) -> None:
    options = ["--model", str(checkpoint), "--device", "cpu", "--retain", "1/18", "--json"]
    refused = ask(image, QUESTION, *options, "--method", "vitcop(layers=(2, 6))")
    assert refused.exit_code == 2
    assert "Other layers" in json.loads(refused.stdout)["error"]
    result = ask(image, QUESTION, *options, "--method", "vitcop(layers=(1, 5))")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["method"] == "vitcop(layers=(1, 5))"
    assert 7 < content["pruned"]["average_tokens"] <= 8


@pytest.mark.parametrize(
    ("method", "asked"), [("vitcop", "130"), ("vitcop", "1%"), ("fastv", "10"), ("sparsevlm", "1%")]
)
def test_ask_names_bounds_that_it_takes(checkpoint: Path, image: Path, method: str, asked: str) -> None:
    options = ["--model", str(checkpoint), "--method", method, "--json", "--retain"]
    refused = ask(image, QUESTION, *options, asked)
    assert refused.exit_code == 2
    pattern = r"\(([\d.]+)%\)" if "%" in asked else r"(?:at least|from|to) ([\d.]+)"
    bounds = re.findall(pattern, json.loads(refused.stdout)["error"])
    assert len(bounds) == (2 if method == "vitcop" else 1)
    for bound in bounds:
        result = ask(image, QUESTION, *options, bound + "%" * ("%" in asked))
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("model", ["./none", "{empty}", "e" * 400, "~nobody-of-this-name/model", "a\0b"])
def test_ask_names_a_model_that_is_none(image: Path, tmp_path: Path, model: str) -> None:
    result = ask(image, QUESTION, "--model", model.format(empty=tmp_path))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: --model ")


def test_ask_names_a_folder_that_is_called_model_as_it_is(image: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    result = ask(image, QUESTION, "--model", folder)
    assert result.exit_code == 2
    assert f"--model must be a folder with all files of a checkpoint, got {folder} without" in result.stderr.replace(
        "\n", ""
    )


def test_ask_gives_the_adapters_error_for_another_family(image: Path, tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=99, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    demo_processor(12).save_pretrained(tmp_path)
    result = ask(image, QUESTION, "--model", tmp_path)
    assert result.exit_code == 2
    assert "must be one of LlavaForConditionalGeneration" in result.stderr


def test_ask_says_that_the_hub_is_out_of_reach(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = ask(image, QUESTION, "--model", "vitcop/no-such-model")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: model must be an existing folder, or a hub id while you are online, got ")


def test_ask_failures_have_exit_code_one(checkpoint: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the machine is on fire")

    monkeypatch.setattr("vitcop_llava.tools.model.answer.generate", fail)
    result = ask(image, QUESTION, "--model", checkpoint)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: RuntimeError: the machine is on fire (--debug shows where)\n"
    assert json.loads(ask(image, QUESTION, "--model", checkpoint, "--json").stdout)["exit_code"] == 1
    assert "Traceback" in ask(image, QUESTION, "--model", checkpoint, "--debug").stderr


def test_ask_leaves_transformers_as_talkative_as_it_was(checkpoint: Path, image: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    ask_json(image, QUESTION, "--model", checkpoint)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
