"""`Answerer`: what each question gets in a batch is what it gets alone."""

import io
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitcop_llava import ViTCoP, prune
from vitcop_llava.tools.batch import Answerer, Outcome, Row, answerer
from vitcop_llava.tools.comparison.questions import scene_images, scene_questions
from vitcop_llava.tools.media.images import image_size, read_image
from vitcop_llava.tools.model import answer
from vitcop_llava.tools.model.answer import generate, prepare
from vitcop_llava.tools.model.loading import Loaded, load

METHOD = ViTCoP(retention_ratio=Fraction("1/9"))
QUESTION = "What color is the circle?"


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load(device="cpu")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Questions about one scene or two, in files."""
    folder, found = tmp_path_factory.mktemp("scenes"), list[Row]()
    paths = [folder / f"{seed}.png" for seed in range(4)]
    for seed, path in enumerate(paths):
        scene_images(seed, 168)[0].save(path)
        found += [Row((path,), item.question) for item in scene_questions(seed)[:3]]
    return [*found[:5], Row((paths[1], paths[0]), "How many shapes are there?"), *found[5:]]


@pytest.fixture
def ask(loaded: Loaded) -> Iterator[Callable[..., list[Outcome]]]:
    """Outcomes in the order of rows."""

    def run(asked: list[Row], size: int = 4, method: Any = METHOD) -> list[Outcome]:
        with Answerer(loaded, method, batch_size=size, max_new_tokens=6) as made:
            found = {number: each for some in made.stream(dict(enumerate(asked))) for number, each in some.items()}
        return [found[number] for number in range(len(asked))]

    yield run
    with prune(loaded.model, METHOD):  # refused where one is left behind
        pass


def alone(loaded: Loaded, row: Row) -> Outcome:
    inputs = prepare(loaded, [read_image(path) for path in row.media], row.question)
    with prune(loaded.model, METHOD) as pruner:
        answer = generate(loaded, inputs, 6).text
        plan = pruner.report.rows[0].plan
    assert plan is not None
    return Outcome(answer, None, plan.visual_tokens, float(plan.average_tokens))


@pytest.mark.parametrize("size", [1, 5, 16])
def test_batch_gives_the_answers_of_questions_alone(loaded: Loaded, rows: list[Row], ask: Any, size: int) -> None:
    assert ask(rows, size) == [alone(loaded, row) for row in rows]


def test_without_a_method_nothing_is_pruned(loaded: Loaded, rows: list[Row], ask: Any) -> None:
    everything = ViTCoP(retention_ratio=1)
    found = ask(rows[:6], method=None)
    assert found == ask(rows[:6], method=everything)
    assert [outcome.average_tokens for outcome in found] == [outcome.visual_tokens for outcome in found]


def test_images_in_tiles_run_together_by_their_tokens(
    next_model: Any, next_processor: Any, photo: Any, budget: Any
) -> None:
    from vitcop_llava.families import locate

    loaded = Loaded(next_model, next_processor, locate(next_model), "next", False)
    sizes = [(96, 96), (131, 40), (30, 200), (96, 96), (131, 40)]
    asked = {10 + n: Row([photo(*size)], "what color is the circle") for n, size in enumerate(sizes)}
    batches = list[list[int]]()
    with Answerer(loaded, budget("1/3"), batch_size=2, max_new_tokens=3) as made:
        found = {number: each for some in made.stream(asked, batches.append) for number, each in some.items()}
    tokens = [found[number].visual_tokens or 0 for batch in batches for number in batch]
    assert tokens == sorted(tokens)
    assert len(set(tokens)) == 3
    assert [len(batch) for batch in batches] == [2, 2, 1]
    for number, row in asked.items():
        with prune(next_model, budget("1/3")):
            assert found[number].answer == generate(loaded, prepare(loaded, row.media, row.question), 3).text


def test_columns_become_columns(loaded: Loaded, rows: list[Row]) -> None:
    path, question = rows[0].media[0], rows[0].question
    picture, data = read_image(path), path.read_bytes()
    kinds = [str(path), path, data, picture, np.asarray(picture)]
    given = {"image": kinds, "question": [question] * 5, "id": np.arange(5)}
    with Answerer(loaded, METHOD, max_new_tokens=6) as made:
        found = made(given)
        lists = made({"images": [[each] for each in kinds], "question": np.array([question] * 5)})
    assert set(found) == {"question", "id", "answer", "error", "visual_tokens", "average_tokens"}
    assert found["id"] is given["id"]
    assert found["answer"] == lists["answer"] == [alone(loaded, rows[0]).answer] * 5
    assert found["error"] == [None] * 5


BAD: dict[str, tuple[Any, Any, str]] = {
    "missing": (["none.png"], QUESTION, "image must be an existing file, got none.png"),
    "content": ([b"GIF"], QUESTION, "image must be one of PNG"),
    "empty": ([b""], QUESTION, "image must have from 1 byte"),
    "floats": ([np.zeros((4, 4, 3))], QUESTION, "image must be an array"),
    "gray": ([np.zeros((4, 4), np.uint8)], QUESTION, "image must be an array"),
    "kind": ([5], QUESTION, "image must be a file's name or content"),
    "none": ([], QUESTION, "images must be a list of at least one"),
    "text": ("a.png", QUESTION, "images must be a list of at least one"),
    "null": (None, QUESTION, "images must be a list of at least one"),
    "no-question": ("good", None, "question must be a text that is not empty, got None"),
    "blank": ("good", " ", "question must be a text that is not empty"),
    "placeholder": ("good", "Where is <image>?", "must not hold the placeholder"),
    "long": ("good", "circle " * 5000, "question must fit into the model's context"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_row_has_an_error_and_the_others_answers(rows: list[Row], ask: Any, case: str) -> None:
    media, question, said = BAD[case]
    if isinstance(media, str) and media == "good":
        media = rows[0].media
    found = ask([rows[0], Row(media, question), rows[1]])
    assert said in (found[1].error or "")
    assert found[1].answer is None
    assert [found[0], found[2]] == ask(rows[:2])


def test_budget_that_one_image_cannot_meet_is_that_row_s(next_model: Any, next_processor: Any, photo: Any) -> None:
    from vitcop_llava.families import locate

    loaded = Loaded(next_model, next_processor, locate(next_model), "next", False)
    with Answerer(loaded, ViTCoP(retained_tokens=70, cutoff_distance=3.0), max_new_tokens=2) as made:
        found = made({"image": [photo(96, 96), photo(200, 30)], "question": [QUESTION] * 2})
    assert found["error"][0] is None
    assert "an image of 30 x 200 pixels" in found["error"][1] or "an image of 200 x 30 pixels" in found["error"][1]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), RuntimeError("no such kernel")])
def test_batch_that_fails_runs_in_parts(
    rows: list[Row], ask: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    wanted, generate_batch, sizes = ask(rows), answer.generate_batch, list[int]()

    def fail(loaded: Loaded, inputs: Any, longest: int) -> list[str]:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 2:
            raise error
        return generate_batch(loaded, inputs, longest)

    monkeypatch.setattr(answerer, "generate_batch", fail)
    assert ask(rows, 8) == wanted
    # The second batch is not tried at a size that memory is too small for.
    assert (sizes.count(8), sizes.count(5)) == (1, int(not isinstance(error, torch.OutOfMemoryError)))


def test_row_that_fails_alone_is_told_of(rows: list[Row], ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> list[str]:
        raise RuntimeError

    monkeypatch.setattr(answerer, "generate_batch", fail)
    assert [outcome.error for outcome in ask(rows[:3])] == ["RuntimeError"] * 3


def test_tokenizer_that_panics_is_an_error_of_its_rows(
    loaded: Loaded, rows: list[Row], ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        """As PyO3 raises it: no `Exception`."""

    def panic(*given: Any, **more: Any) -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr(loaded.processor.tokenizer, "batch_decode", panic)
    (outcome,) = ask(rows[:1])
    assert outcome.error == "model must have a tokenizer that can be used, got one that fails: index out of bounds"


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"image": ["a.png"]}, 'columns must have "question"'),
        ({"question": ["?"]}, 'columns must have "question", and either'),
        ({"image": ["a"], "images": [["a"]], "question": ["?"]}, 'either "image" or "images"'),
        ({"image": ["a", "b"], "question": ["?"]}, "columns must have as many entries each"),
    ],
)
def test_columns_that_are_no_rows_are_refused(loaded: Loaded, columns: Any, said: str) -> None:
    with Answerer(loaded, METHOD) as made, pytest.raises(ValueError, match=said):
        made(columns)


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"method": "vitcop"}, TypeError, "method must be a method or None"),
        ({"batch_size": 0}, ValueError, "batch_size must be"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be"),
        ({"method": ViTCoP(retained_tokens=1)}, ValueError, "retained_tokens must be"),
    ],
)
def test_mistake_names_the_argument(loaded: Loaded, given: dict[str, Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        Answerer(loaded, **({"method": METHOD} | given))


def test_size_is_known_without_decoding(tmp_path: Path) -> None:
    picture, turned = Image.new("RGB", (30, 20)), Image.Exif()
    turned[274] = 6
    for name, exif in (("a.png", Image.Exif()), ("a.webp", Image.Exif()), ("a.jpg", turned)):
        picture.save(tmp_path / name, exif=exif)
        data = io.BytesIO((tmp_path / name).read_bytes()).getvalue()
        height, width = image_size(tmp_path / name)
        assert read_image(tmp_path / name).size == (width, height)
        assert image_size(data) == (height, width)
