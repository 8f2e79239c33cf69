"""Ray Data answers many rows by engines with the plugin, as docs/howto/vllm.md says."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import conftest_vllm
import pytest
import ray
import ray.data
from conftest_vllm import EARLY, ENGINE, ONE, expected, pictures
from PIL import Image
from ray.data.llm import build_processor, vLLMEngineProcessorConfig
from transformers import LlavaForConditionalGeneration

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray, which has many

ROWS = 6


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    ray.init(
        num_cpus=3,
        object_store_memory=150 * 2**20,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(conftest_vllm.__file__).parent)}},  # this module imports it
    )
    yield
    ray.shutdown()


def _content(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _request(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt": ONE,
        "multimodal_data": {"image": Image.open(io.BytesIO(row["image"]))},
        "sampling_params": {"temperature": 0, "max_tokens": 12, "ignore_eos": True},
        "id": row["id"],
    }


def _result(row: dict[str, Any]) -> dict[str, Any]:
    return {"id": row["id"], "tokens": list(row["generated_tokens"])}


def test_rows_get_the_answers_that_they_get_alone(llava: Path, cluster: None) -> None:
    images = pictures([(168, 168)] * ROWS)
    config = vLLMEngineProcessorConfig(
        model_source=str(llava),
        engine_kwargs=ENGINE | {"hf_overrides": {"vitcop": EARLY}, "distributed_executor_backend": "mp"},
        placement_group_config={"bundles": [{"CPU": 1}]},
        concurrency=1,
        batch_size=4,
        log_engine_metrics=False,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        prepare_multimodal_stage=False,
    )
    rows = ray.data.from_items([{"id": number, "image": _content(image)} for number, image in enumerate(images)])
    found = build_processor(config, preprocess=_request, postprocess=_result)(rows).take_all()
    wanted = expected(llava, LlavaForConditionalGeneration, [(ONE, [image]) for image in images], EARLY)
    assert [row["tokens"] for row in sorted(found, key=lambda row: row["id"])] == wanted
