"""Every command that writes, killed at random moments: no half file has a final name, and what can go on goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from killing import Server, kill_often
from PIL import Image

from vitcop_llava.tools.media import video_support

QUESTION = "What color is the circle?"
MODULES = (
    "vitcop_llava.prefix.image_prefix",
    "vitcop_llava.tools.analysis.report",
    "vitcop_llava.tools.batch.answerer",
    "vitcop_llava.tools.benchmark.run",
    "vitcop_llava.tools.comparison.plot",
    "vitcop_llava.tools.comparison.run",
    "vitcop_llava.tools.model.loading",
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server([*MODULES, *(["vitcop_video.demo.files"] if video_support.find_support() else [])])
    yield running
    running.close()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    lines = []
    for number in range(6):
        path = folder / f"{number}.png"
        Image.linear_gradient("L").rotate(60 * number).resize((96, 96)).save(path)
        lines.append(json.dumps({"image": str(path), "question": QUESTION, "id": number}))
    (folder / "batch.jsonl").write_text("\n".join(lines))
    return folder


Command = Callable[[Path, Path, Path], list[str]]

COMMANDS: dict[str, Command] = {
    "scene": lambda inputs, model, out: ["scene", "--out", f"{out}/scene.png", "--force"],
    "scene --clip": lambda inputs, model, out: ["scene", "--clip", "--out", f"{out}/clip.mp4", "--force"],
    "show": lambda inputs, model, out: ["show", f"{inputs}/0.png", "--out", f"{out}/show.png", "--force", *use(model)],
    "bench": lambda inputs, model, out: [
        *("bench", "--repeats", "1", "--new-tokens", "1", "--method", "vitcop", "--retain", "1/3"),
        *("--out", f"{out}/bench.json", "--force", *use(model)),
    ],
    "analyze": lambda inputs, model, out: [
        *("analyze", f"{inputs}/0.png", "--out", f"{out}/analysis", "--force", *use(model)),
    ],
    "ask": lambda inputs, model, out: [
        *("ask", "--batch", f"{inputs}/batch.jsonl", "--out", f"{out}/answers.jsonl", "--max-new-tokens", "1"),
        *use(model),
    ],
    "batch": lambda inputs, model, out: [
        *("batch", f"{inputs}/batch.jsonl", "--out", f"{out}/answers.jsonl", "--batch-size", "2"),
        *("--max-new-tokens", "1", *use(model)),
    ],
    "compare": lambda inputs, model, out: [
        *("compare", "--limit", "4", "--batch-size", "2", "--retain", "1/3", "--method", "vitcop", "--timing", "0"),
        *("--max-new-tokens", "1", "--out", f"{out}/compared", *use(model)),
    ],
}


def use(model: Path) -> list[str]:
    return ["--model", str(model), "--device", "cpu"]


@pytest.mark.parametrize("name", COMMANDS)
def test_no_half_file_has_a_final_name(
    server: Server,
    inputs: Path,
    checkpoint: Path,
    tmp_path: Path,
    kills: int,
    record_property: Callable[[str, object], None],
    name: str,
) -> None:
    if name == "scene --clip":
        pytest.importorskip("vitcop_video")
    out = tmp_path / "out"
    command = COMMANDS[name](inputs, checkpoint, out)
    killed = kill_often(server, command, out, kills, seed=name, resume=name in ("ask", "batch", "compare"))
    record_property("command", name)
    record_property("killed", killed)
    assert killed == kills
    if name in ("ask", "batch"):
        lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
        assert [line["id"] for line in lines] == [*range(6)]
