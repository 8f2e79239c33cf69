"""Model and processor from a local folder, from the hub, or the demo that the package carries.

Nothing of a checkpoint is run: weights come from safetensors alone, and its own code is never trusted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoModelForImageTextToText, PreTrainedConfig

from vitcop_core.shown import told
from vitcop_llava.families import Parts, load_families, locate
from vitcop_llava.tools.demo.questions import vocabulary
from vitcop_llava.tools.media.video_support import find_support
from vitcop_llava.tools.model.checkpoint_files import (
    WEIGHTS,
    WEIGHTS_INDEX,
    check_config,
    check_files,
    check_generation,
    check_weights,
    find_shards,
    read_config,
)
from vitcop_llava.tools.model.processors import ModelError, check_processor, no_panics, read_processor

__all__ = ["DEMO_FOLDER", "DTYPES", "WEIGHTS", "WEIGHTS_INDEX", "HubError", "Loaded", "find_device", "find_source"]
__all__ += ["is_packaged", "load"]

DEMO_FOLDER = Path(__file__).parents[1] / "demo" / "weights"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class HubError(RuntimeError):
    """The hub cannot be reached, or did not answer."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model that can be pruned, with its processor.

    Attributes:
        model: in evaluation mode, on its device.
        processor: makes the model's inputs from images and text.
        parts: what the family adapter found.
        source: where it came from: a folder, or a hub id.
        is_demo: whether it knows the scenes, or the clips, and the words of a demo alone.
    """

    model: Any
    processor: Any
    parts: Parts
    source: str
    is_demo: bool

    @property
    def knows_scenes(self) -> bool:
        """Whether it is the demo model for pictures."""
        return self.is_demo and self.parts.video is None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.parts.base.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return next(self.parts.base.parameters()).dtype


def load(source: str | None = None, *, device: str = "auto", dtype: str = "auto") -> Loaded:
    """Load a model that can be pruned.

    Args:
        source: a local folder or a hub id; None for the demo model.
        device: ``auto`` (CUDA, then MPS, then the CPU), or a torch device such as ``cuda:1``.
        dtype: ``auto``, or one of `DTYPES`. ``auto`` is the checkpoint's own, but bfloat16 for a float16 checkpoint on
            a CPU, where float16 is slow.

    Raises:
        ModelError: where there is no such model, a part of it is missing or damaged, or its parts do not fit together.
        TypeError: for a model family that is not supported.
        ValueError: for a supported family with a part that is not, or a device or dtype that there is not.
        HubError: where the hub cannot be reached.
    """
    where = find_device(device)
    if dtype != "auto" and dtype not in DTYPES:
        raise ValueError(f"dtype must be auto, {', '.join(DTYPES)}, got {dtype!r}")
    with torch.device("cpu"):  # whatever the default device is: the argument says where the model goes
        return _load(find_source(source), where, dtype)


def _load(name: str, where: torch.device, dtype: str) -> Loaded:
    config = _read_config(name)
    skeleton = _skeleton(name, config)  # an unsupported family is refused before gigabytes are read
    if Path(name).is_dir():
        numbers = sum(weight.numel() for weight in skeleton.parameters())
        check_weights(Path(name), numbers, getattr(config, "quantization_config", None) is not None)
    model = _read_weights(name, _dtype_of(config, dtype, where)).to(where)
    parts = locate(model)
    check_generation(name, model.generation_config.to_dict())
    try:
        with no_panics():
            processor = read_processor(name, parts)
    except MemoryError:
        raise
    except Exception as error:  # as for the configuration
        raise _of_hub(name, error) or ModelError(
            f"model must have a processor that can be used, got that of {name}: {told(error)}"
        ) from error
    try:
        with no_panics():
            check_processor(name, processor, parts)
    except (ModelError, MemoryError):
        raise
    except Exception as error:  # whatever its settings are
        raise ModelError(f"model must have a processor that can be used, got that of {name}: {told(error)}") from error
    words = set(processor.tokenizer.get_vocab()) - set(processor.tokenizer.all_special_tokens)
    # Or: a demo model that someone trained again.
    is_demo = is_packaged(name) or words == set(vocabulary())
    return Loaded(model, processor, parts, name, is_demo)


def is_packaged(name: str) -> bool:
    """Return whether a source is a demo model of the packages."""
    support = find_support()
    return name == str(DEMO_FOLDER) or (support is not None and name == str(support.demo_folder))


def find_device(device: str) -> torch.device:
    """Return the device of that name, ``auto`` among them.

    Raises:
        ValueError: for a name that is none, or a device that is not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {device!r}") from error
    count = torch.cuda.device_count() if found.type == "cuda" else 1
    missing = found.type == "mps" and not torch.backends.mps.is_available()
    if missing or not 0 <= (found.index or 0) < count or found.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device must be one that is there, got {device!r}; CUDA devices: {torch.cuda.device_count()}")
    return found


def find_source(source: str | None) -> str:
    """Return the folder or hub id that ``source`` means; a folder is looked through for what is missing.

    Raises:
        ModelError: where it is neither, or something is missing.
    """
    if source is None:
        if not (DEMO_FOLDER / WEIGHTS).is_file():
            raise ModelError(
                f"model must be given where the demo weights are not installed, got none at {DEMO_FOLDER / WEIGHTS}; "
                "name a local folder or a hub id such as llava-hf/llava-1.5-7b-hf"
            )
        return str(DEMO_FOLDER)
    try:
        folder = Path(source).expanduser()
        is_folder, is_file = folder.is_dir(), folder.is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long, a user that there is not
        raise ModelError(f"model must be a folder or a hub id, got {source!r:.80}: {told(error)}") from error
    if source and is_folder:
        _check_folder(folder)
        return str(folder)
    if is_file:
        raise ModelError(f"model must be a folder or a hub id, got the file {source}")
    if not _HUB_ID.fullmatch(source):
        raise ModelError(
            f"model must be an existing folder, or a hub id such as llava-hf/llava-1.5-7b-hf, got {source!r}"
        )
    return source


def _check_folder(folder: Path) -> None:
    check_files(folder)
    missing = []
    if not (folder / "config.json").is_file():
        missing.append("config.json")
    if not (folder / WEIGHTS).is_file():
        if (folder / WEIGHTS_INDEX).is_file():
            missing += [name for name in find_shards(folder) if not (folder / name).is_file()]
        elif pickles := sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern)):
            raise ModelError(
                f"model {folder} must hold safetensors weights ({WEIGHTS}), got {pickles[0]}, a pickle, which can run "
                "code and is not read"
            )
        else:
            missing.append(f"weights ({WEIGHTS})")
    if not any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        missing.append("an image processor (processor_config.json or preprocessor_config.json)")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        missing.append("a tokenizer (tokenizer.json)")
    if missing:
        if "config.json" not in missing:
            _skeleton(str(folder), _read_config(str(folder)))  # a family that is not supported is worth saying first
        raise ModelError(
            f"model must be a folder with all files of a checkpoint, got {folder} without {', '.join(missing)}"
        )


def _read_config(name: str) -> PreTrainedConfig:
    try:
        found = read_config(Path(name)) if Path(name).is_dir() else PreTrainedConfig.get_config_dict(name)[0]
        check_config(name, found)
        if found.get("model_type") not in CONFIG_MAPPING:
            load_families()
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=False)
        return config
    except (ModelError, MemoryError):
        raise
    except Exception as error:  # whatever is in the file, it is the checkpoint's
        raise _of_hub(name, error) or ModelError(
            f"model must have a configuration that can be used, got that of {name}: {told(error)}"
        ) from error


def _of_hub(name: str, error: BaseException) -> Exception | None:
    """Return what an error of the hub means; None for an error that is not the hub's."""
    if Path(name).is_dir():
        return None
    chain: list[BaseException] = []
    while error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__ or error
    if any(isinstance(cause, RepositoryNotFoundError | RevisionNotFoundError | HFValidationError) for cause in chain):
        return ModelError(f"model must be an existing folder, or a model on the hub that you may read, got {name!r}")
    if any(isinstance(cause, OSError) for cause in chain):
        first = str(chain[0]).strip().splitlines()[:1] or [type(chain[0]).__name__]
        return HubError(f"model must be an existing folder, or a hub id while you are online, got {name!r}: {first[0]}")
    return None


def _skeleton(name: str, config: PreTrainedConfig) -> nn.Module:
    """Return the model's modules without their weights, of a family that is supported.

    Raises:
        ModelError: They cannot be built.
        TypeError, ValueError: As for `locate`.
    """
    model = _build(name, config)
    try:
        locate(model)
    except (TypeError, ValueError, MemoryError):
        raise
    except Exception as error:  # a part is not what the family has, because of some setting
        raise ModelError(
            f"model must have a configuration that can be used, got that of {name}: {told(error)}"
        ) from error
    return model


def _build(name: str, config: PreTrainedConfig) -> nn.Module:
    """Return the modules of a model; of one without images, for the adapter to refuse by name."""
    kinds: tuple[Any, ...] = (AutoModelForImageTextToText, AutoModel)
    with torch.device("meta"):
        for kind in kinds:
            try:
                model: nn.Module = kind.from_config(config, trust_remote_code=False)
                return model
            except MemoryError:
                raise
            except Exception as error:  # whatever the settings are, they are the checkpoint's
                if not str(error).startswith("Unrecognized configuration class"):
                    raise ModelError(
                        f"model must have a configuration that can be used, got that of {name}: {told(error)}"
                    ) from error
    raise ModelError(f"model must be of a family that is supported, got a {config.model_type}")


def _dtype_of(config: PreTrainedConfig, dtype: str, device: torch.device) -> torch.dtype | str:
    if dtype != "auto":
        return DTYPES[dtype]
    return torch.bfloat16 if device.type == "cpu" and config.dtype == torch.float16 else "auto"


def _read_weights(name: str, dtype: torch.dtype | str) -> Any:
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            name, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # whatever is in the files, it is the checkpoint's
        raise _of_hub(name, error) or ModelError(
            f"model must have weights that can be used, got those of {name}: {told(error)}"
        ) from error
    model, info = loaded
    # transformers fills in what is missing with random numbers, and the model then answers nonsense.
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"model {name} must have weights for all parts, got none for {len(missing)} tensors, {missing[0]} among "
            "them"
        )
    return model.eval()
