"""A chat template is a program of somebody else's: one that never ends is an error of the model, in any thread."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from PIL import Image
from transformers.utils.chat_template_utils import render_jinja_template
from typer.testing import CliRunner

from vitcop_llava.tools.cli import app
from vitcop_llava.tools.model import templates
from vitcop_llava.tools.model.processors import ModelError
from vitcop_llava.tools.model.templates import render_chat

LONG = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
CHAT = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]


class Templated:
    """What a processor does with its template."""

    def __init__(self, template: str) -> None:
        self.chat_template = template

    def apply_chat_template(self, chat: Any, chat_template: str | None, **settings: Any) -> str:
        del settings
        found: Any = render_jinja_template([chat], chat_template=chat_template or self.chat_template)
        return str(found[0][0])


def test_a_template_that_does_not_end_is_told(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "grey.png"
    Image.new("RGB", (96, 96)).save(image)
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    (folder / "chat_template.jinja").write_text(LONG)
    monkeypatch.setattr(templates, "TIME_LIMIT", 0.3)
    result = CliRunner().invoke(app, ["ask", str(image), "What?", "--model", str(folder), "--device", "cpu"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "Error: model must have a chat template that ends, got one that goes on after 0.3 s\n"


def test_threads_end_their_own_templates_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "TIME_LIMIT", 0.5)
    with ThreadPoolExecutor(3) as pool:
        long = [pool.submit(render_chat, Templated(LONG), CHAT) for _ in range(2)]
        for _ in range(20):
            assert pool.submit(render_chat, Templated("{{ messages[0].role }}"), CHAT).result() == "user"
        for each in long:
            with pytest.raises(ModelError, match=r"goes on after 0\.5 s"):
                each.result()


def test_a_limit_that_is_met_at_the_end_breaks_nothing_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates that take about as long as they may: each gives its prompt or the error, and nothing comes later."""
    processor = Templated("{% for i in range(3000) %}{% endfor %}{{ messages[0].role }}")
    render_chat(processor, CHAT)
    start = time.perf_counter()
    render_chat(processor, CHAT)
    monkeypatch.setattr(templates, "TIME_LIMIT", time.perf_counter() - start)
    told, strays = list[str](), list[BaseException]()

    def work() -> None:
        try:
            for _ in range(300):
                try:
                    told.append(render_chat(processor, CHAT))
                except ModelError:
                    told.append("late")
                for _ in range(50):
                    pass
        except BaseException as error:
            strays.append(error)

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert not strays
    assert len(told) == 300
    assert {*told} <= {"user", "late"}
