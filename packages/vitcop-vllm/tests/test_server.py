"""The server answers about pruned images, and tells a client what is wrong with its settings."""

from __future__ import annotations

import base64
import io
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest_vllm import EARLY, REFUSED, pictures
from openai import BadRequestError, OpenAI

PATCHES, STARTS_WITHIN = 144, 240


@pytest.fixture(scope="module")
def client(llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"dtype": "float32", "max-model-len": "1024", "block-size": "32", "gpu-memory-utilization": "0.1"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(llava), "--enforce-eager"]
    command += ["--served-model-name", "small", "--host", "127.0.0.1", "--port", str(port)]
    command += [
        "--trust-request-mm-kwargs",
        *(part for name, value in options.items() for part in (f"--{name}", value)),
    ]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as server:
        try:
            _wait(server, f"http://127.0.0.1:{port}/health", log)
            yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        finally:
            server.terminate()


def _wait(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    for _ in range(STARTS_WITHIN):
        assert server.poll() is None, log.read_text()[-5000:]
        try:
            with urllib.request.urlopen(address):
                return
        except urllib.error.URLError:
            time.sleep(1)
    raise AssertionError(log.read_text()[-5000:])


def _ask(client: OpenAI, settings: Any, **given: Any) -> Any:
    buffer = io.BytesIO()
    pictures([(168, 168)])[0].save(buffer, "PNG")
    picture = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    content: Any = [
        {"type": "image_url", "image_url": {"url": picture}},
        {"type": "text", "text": "what color is the circle ?"},
    ]
    return client.chat.completions.create(
        model="small",
        messages=[{"role": "user", "content": content}],
        max_tokens=8,
        temperature=0,
        extra_body={"ignore_eos": True} | ({"mm_processor_kwargs": {"vitcop": settings}} if settings else {}),
        **given,
    )


def test_usage_counts_the_pruned_prompt(client: OpenAI) -> None:
    whole, pruned = _ask(client, None), _ask(client, EARLY)
    assert whole.usage.prompt_tokens - pruned.usage.prompt_tokens == PATCHES - EARLY["retained_tokens"]
    assert pruned.choices[0].message.content


def test_streaming(client: OpenAI) -> None:
    whole = _ask(client, EARLY)
    chunks = list(_ask(client, EARLY, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_bad_settings_are_the_clients_error(client: OpenAI, settings: Any, message: str) -> None:
    with pytest.raises(BadRequestError, match=message):
        _ask(client, settings)
    assert _ask(client, EARLY).choices[0].message.content
