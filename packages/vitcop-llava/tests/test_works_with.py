"""What people put around a model: Trainer, pipelines, quantized weights. The table in the docs is held to tests."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, pipeline
from transformers.modeling_layers import GradientCheckpointingLayer

import vitcop_llava
from vitcop_llava import ViTCoP
from vitcop_llava.tools.demo.scenes import render, sample_scene
from vitcop_llava.tools.model.loading import DEMO_FOLDER, load

Make = Callable[..., Tensor]
METHOD = ViTCoP(retained_tokens=24, cutoff_distance=3.0)
PAGE = Path(__file__).parents[3] / "docs" / "works-with.md"


class Samples(Dataset[dict[str, Tensor]]):
    """Rows with a picture each, as a collator takes them."""

    def __init__(self, ids: Tensor, images: Tensor) -> None:
        self.ids, self.images = ids, images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        labels = self.ids[0].masked_fill(self.ids[0] == 99, -100)
        return {"input_ids": self.ids[0], "pixel_values": self.images[index], "labels": labels}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpoints"])
def test_trainer_trains_what_a_loop_trains(
    build: Any, prompt: Make, pictures: Make, tmp_path: Path, checkpointing: bool
) -> None:
    if checkpointing and "__call__" in vars(GradientCheckpointingLayer):
        pytest.skip("this version of transformers runs hooks again when it computes activations again")
    torch.set_grad_enabled(True)
    samples = Samples(prompt(3, "image", 8), pictures(4))
    models = [copy.deepcopy(build()) for _ in range(2)]
    settings: dict[str, Any] = {"output_dir": str(tmp_path), "max_steps": 2, "per_device_train_batch_size": 2}
    settings |= {"report_to": [], "save_strategy": "no", "use_cpu": True, "learning_rate": 0.1, "optim": "sgd"}
    settings |= {"lr_scheduler_type": "constant", "max_grad_norm": 0.0, "gradient_checkpointing": checkpointing}
    own = next(iter(models))
    with vitcop_llava.prune(own, METHOD):
        trainer = Trainer(model=own, args=TrainingArguments(**settings), train_dataset=samples)
        loader = [copy.deepcopy(batch) for batch in trainer.get_train_dataloader()]
        trainer.train()
    other = models[1].train()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with vitcop_llava.prune(other, METHOD):
        for batch in loader:
            optimizer.zero_grad()
            other(**batch).loss.backward()
            optimizer.step()
    moved = dict(build().named_parameters())
    for (name, mine), theirs in zip(own.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
        assert mine.grad is None or not torch.equal(mine, moved[name]) or mine.grad.abs().max() < 1e-6


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pipeline_answers_as_generate_does() -> None:
    loaded = load(str(DEMO_FOLDER), device="cpu")
    image = render(sample_scene(33))
    asker = pipeline("image-text-to-text", model=loaded.model, processor=loaded.processor, device="cpu")
    text = f"{loaded.processor.image_token} What shape is purple?"
    inputs = loaded.processor(images=image, text=text, return_tensors="pt")
    with vitcop_llava.prune(loaded.model, ViTCoP(retained_tokens=48)) as pruner:
        made = loaded.model.generate(**inputs, max_new_tokens=4, do_sample=False)
        wanted = loaded.processor.batch_decode(made, skip_special_tokens=True)[0]
        found = asker(images=image, text=text, max_new_tokens=4, generate_kwargs={"do_sample": False})
        assert pruner.report.pruned
    assert found[0]["generated_text"].endswith(wanted.removeprefix(text).strip().split()[-1])


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("inside", [False, True], ids=["before", "inside"])
def test_quantized_weights_are_pruned(build: Any, prompt: Make, pictures: Make, inside: bool) -> None:
    import torchao.quantization as quantization  # type: ignore[import-untyped]

    model, given = copy.deepcopy(build()), {"input_ids": prompt(3, "image", 8), "pixel_values": pictures()}
    other = copy.deepcopy(model)
    quantization.quantize_(other, quantization.Int8WeightOnlyConfig())
    with vitcop_llava.prune(other, METHOD):
        wanted = other(**given).logits
    if not inside:
        assert wanted.isfinite().all()
        return
    with vitcop_llava.prune(model, METHOD) as pruner:
        model(**given)
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
        torch.testing.assert_close(model(**given).logits, wanted, rtol=0, atol=1e-5)
        assert pruner.report.pruned


def test_every_row_of_the_page_names_a_test() -> None:
    rows = re.findall(r"^\| (?!what|---)(.*) \|$", PAGE.read_text(), flags=re.MULTILINE)
    assert len(rows) >= 15
    for row in rows:
        cells = [cell.strip() for cell in row.split(" | ")]
        assert len(cells) == 4
        assert cells[1] in {"works", "refused", "works, or is refused"}
        names = re.findall(r"`(test_\w+)\.(test_\w+)`", cells[3])
        assert names, row
        for file, name in names:
            assert f"def {name}(" in (Path(__file__).parent / f"{file}.py").read_text(), (file, name)
