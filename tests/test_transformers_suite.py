import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers_suite.outcomes import MODES, Expected, RunResult, compare, read_expected, worse
from transformers_suite.summary import LEAST_CUTS, LEAST_WRAPPED, describe, shortfalls
from transformers_suite.tree import FAMILIES, lay_out

ROOT = Path(__file__).parents[1]
KNOWN = [Expected(("*::test_b*",), ("pruned",), "b asks for the impossible")]


def result(**outcomes: str) -> RunResult:
    return RunResult({f"tests/a.py::A::test_{name}": outcome for name, outcome in outcomes.items()})


def names(tests: tuple[str, ...]) -> list[str]:
    return [test.rpartition("_")[2] for test in tests]


def test_comparison_knows_expected_from_unexpected() -> None:
    found = compare(
        result(a="passed", b="passed", c="passed"), result(a="passed", b="failed", c="failed"), "pruned", KNOWN
    )
    assert (found.compared, names(found.expected), names(found.unexpected)) == (3, ["b"], ["c"])
    assert not found.is_fine


def test_comparison_is_fine_where_all_is_expected() -> None:
    assert compare(result(a="passed", b="passed"), result(a="passed", b="failed"), "pruned", KNOWN).is_fine


def test_comparison_of_nothing_is_not_fine() -> None:
    assert not compare(result(a="failed"), result(a="failed"), "pruned", []).is_fine


def test_comparison_leaves_out_what_fails_or_is_skipped_unpruned() -> None:
    found = compare(result(a="failed", b="skipped", c="xfailed", d="passed"), result(d="passed"), "pruned", KNOWN)
    assert (found.compared, found.is_fine) == (1, True)


@pytest.mark.parametrize("outcome", ["failed", "skipped", "xfailed"])
@pytest.mark.parametrize("before", ["passed", "xpassed"])
def test_comparison_takes_anything_but_passing_for_a_difference(before: str, outcome: str) -> None:
    assert names(compare(result(a=before), result(a=outcome), "pruned", []).unexpected) == ["a"]


def test_comparison_finds_stale_entries() -> None:
    # Of two tests that an entry covers one passes: that one should not be covered.
    found = compare(result(b1="passed", b2="passed"), result(b1="failed", b2="passed"), "pruned", KNOWN)
    assert (names(found.expected), names(found.stale), found.is_fine) == (["b1"], ["b2"], False)


def test_comparison_takes_entries_of_its_own_mode_alone() -> None:
    assert names(compare(result(b="passed"), result(b="failed"), "keep-all", KNOWN).unexpected) == ["b"]
    assert compare(result(b="passed"), result(b="passed"), "keep-all", KNOWN).is_fine


def test_comparison_misses_tests_that_did_not_run() -> None:
    found = compare(result(a="passed"), result(), "pruned", [])
    assert (names(found.missing), found.is_fine) == (["a"], False)


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [(None, "passed", "passed"), ("failed", "passed", "failed"), ("passed", "skipped", "skipped")],
)
def test_worse_of_two_outcomes(first: str | None, second: str, both: str) -> None:
    assert worse(first, second) == both


def test_expected_file_is_valid_and_has_no_keep_all_difference() -> None:
    entries = read_expected(ROOT / "tests/transformers_suite/expected.toml")
    assert all("keep-all" not in entry.modes for entry in entries)
    patterns = [pattern for entry in entries for pattern in entry.tests]
    assert len(patterns) == len(set(patterns))


@pytest.mark.parametrize(
    "entry",
    ['tests = []\nmodes = ["pruned"]\nreason = "r"', 'tests = ["a"]\nmodes = ["other"]\nreason = "r"'],
)
def test_expected_file_names_a_bad_entry(tmp_path: Path, entry: str) -> None:
    path = tmp_path / "expected.toml"
    path.write_text(f"[[difference]]\n{entry}\n")
    with pytest.raises(ValueError, match="entry 1 needs tests"):
        read_expected(path)


def test_shortfalls_name_what_was_not_done() -> None:
    whole = RunResult(wrapped=dict(LEAST_WRAPPED), cuts=dict(LEAST_CUTS))
    assert all(shortfalls(whole, mode) == [] for mode in MODES)
    assert len(shortfalls(RunResult(), "keep-all")) == len(LEAST_WRAPPED)
    assert "only 0 cuts (vision)" in "\n".join(shortfalls(RunResult(), "pruned"))


def test_description_has_the_error_and_who_was_left_alone() -> None:
    other = result(a="failed")
    other.messages, other.left_alone = {"tests/a.py::A::test_a": "ValueError: no\nmore"}, {"LlavaModel: is odd": 2}
    lines = describe(compare(result(a="passed"), other, "pruned", []), other, "pruned")
    assert any(line.endswith("DIFFERS (failed): tests/a.py::A::test_a: ValueError: no") for line in lines)
    assert "  left alone, 2: LlavaModel: is odd" in lines


def test_tree_takes_the_families_alone(tmp_path: Path) -> None:
    folder, target = tmp_path / "checkout", tmp_path / "tree"
    target.mkdir()
    for family in (*FAMILIES, "bert"):
        file = folder / f"tests/models/{family}/test_modeling_{family}.py"
        file.parent.mkdir(parents=True)
        file.touch()
    (folder / "tests/models/__init__.py").touch()
    lay_out(folder, target)
    assert {path.name for path in (target / "tests/models").iterdir()} == {*FAMILIES, "__init__.py"}
    assert (target / "src/transformers/__init__.py").is_file()


def test_tree_refuses_a_folder_without_the_tests(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must have transformers' tests in it"):
        lay_out(tmp_path, tmp_path / "tree")


# In a process of its own: the wrapper stays on the classes.
WRAPPING = """
import copy, tempfile
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaModel
from transformers_suite.methods import METHODS
from transformers_suite.wrapping import Wrapper, is_hooked

vision = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
                          image_size=8, patch_size=4)
text = LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=19, vision_feature_layer=-1)
wrapper = Wrapper(METHODS["pruned"])
wrapper.install()
model = LlavaForConditionalGeneration(config)
copied = copy.deepcopy(model)
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    loaded = LlavaForConditionalGeneration.from_pretrained(folder)
bare = LlavaModel(config)
config.vision_feature_select_strategy = "full"
refused = LlavaForConditionalGeneration(config)
assert [is_hooked(m) for m in (model, copied, loaded, bare, refused)] == [True, True, True, True, False]
assert wrapper.wrapped == {"LlavaForConditionalGeneration": 3, "LlavaModel": 1}, wrapper.wrapped
assert len(wrapper.left_alone) == 1 and all("instead of 'default'" in reason for reason in wrapper.left_alone)
assert wrapper.release() == [] and not any(is_hooked(m) for m in (model, loaded, bare))
"""


def test_wrapper_prunes_whatever_is_constructed() -> None:
    paths = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-c", WRAPPING]
    done = subprocess.run(command, env={"PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
