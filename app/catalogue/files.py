"""What is in model files, told from their headers: no weight is read, and nothing is ever unpickled."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.catalogue.table import ModelError

WEIGHTS = ("diffusion_pytorch_model", "model")  # how diffusers and transformers call a part's weights
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
# What the names of parts without weights begin with.
WEIGHTLESS = ("scheduler", "tokenizer", "feature_extractor", "image_processor")
# What nobody needs who does not want pictures checked.
SAFETY = ("safety_checker", "feature_extractor")
# Files that may hold the words of a tokenizer; without one of them a library makes up an empty one.
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")
LARGEST_HEADER = 100 * 2**20  # bytes, as in safetensors itself


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """The tensors in a safetensors file: name -> {"dtype", "shape", "data_offsets"}.

    Raises ModelError, in words, when it is another kind of file, or is cut off.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if start.startswith(b"version "):
                raise ModelError(
                    f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder."
                )
            if start[:2] in (b"PK", b"\x80\x02", b"\x80\x04"):
                raise ModelError(f"{path} is a PyTorch pickle under another name. {_SAFE_PART}")
            (length,) = struct.unpack("<Q", start)  # fails where there are fewer than eight bytes
            if not 2 <= length <= LARGEST_HEADER:
                raise ValueError
            header = file.read(length)
            if len(header) < length:
                raise ModelError(_cut_off(path, size, 8 + length))
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except OSError as error:
        raise ModelError(f"{path} can't be read ({error.strerror}).") from error
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(
            f"{path} is not a safetensors file, whatever its name says. Get it again."
        ) from error
    if size < end:
        raise ModelError(_cut_off(path, size, end))
    return tensors


_SAFE = (
    "Loading a pickle can run code, so it is not loaded here. Take the model's safetensors, or convert it "
)
_SAFE_PART = _SAFE + "where you trust it: `DiffusionPipeline.from_pretrained(OLD).save_pretrained(NEW)`."
_SAFE_FILE = (
    _SAFE
    + "where you trust it: `StableDiffusionPipeline.from_single_file(OLD).save_pretrained(NEW)`, or as its "
    "pipeline is called."
)


def _cut_off(path: Path, size: int, due: int) -> str:
    return f"{path} is cut off: it has {size:,} bytes of {due:,} at least. Get it again."


def refuse_pickle(path: Path) -> None:
    """Raise ModelError for a file that is a pickle by its name."""
    if path.suffix in PICKLES:
        raise ModelError(f"{path} is a PyTorch pickle, and safetensors are due. {_SAFE_FILE}")


def count(tensors: Mapping[str, Mapping[str, Any]]) -> int:
    """How many numbers the tensors of a header hold."""
    return sum(math.prod(entry["shape"]) for entry in tensors.values())


def read_index(folder: Path) -> dict[str, Any]:
    """`model_index.json` of a folder in the diffusers layout, or ModelError where it has none."""
    path = folder / "model_index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} is no model in the diffusers layout: {_instead(folder)}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} can't be read. Get the folder again.") from error
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise ModelError(f"{path} names no pipeline. Get the folder again.")
    return index


def _instead(folder: Path) -> str:
    nested = sorted(path.parent for path in folder.glob("*/model_index.json"))
    files = sorted(folder.glob("*.safetensors"))
    if nested:
        return f"it has no model_index.json. Do you mean {nested[0]}?"
    if files:
        return f"it has no model_index.json. For the checkpoint in it, say --model {files[0]}"
    if any(path.suffix in PICKLES for path in folder.iterdir()):
        return f"it has no model_index.json, and its weights are pickles. {_SAFE_FILE}"
    return "it has no model_index.json. Choose the folder that holds that file."


def part_names(index: Mapping[str, Any]) -> list[str]:
    """The parts that an index names, without settings and what the pipeline goes without."""
    return [
        name
        for name, source in index.items()
        if not name.startswith("_") and isinstance(source, list) and len(source) == 2 and None not in source
    ]


def check_folder(folder: Path, without: Sequence[str] = ()) -> dict[str, int]:
    """The numbers of weights of a model's parts, once all its files are found to be there and whole.

    Args:
        without: parts that need not be there, and don't count.

    Raises ModelError, in words, for the first that is not.
    """
    parts = {}
    for name in part_names(read_index(folder)):
        if name in without:
            continue
        if not (folder / name).is_dir():
            ways = "Get it again" + (", or start with --no-safety-checker." if name in SAFETY else ".")
            raise ModelError(f"{folder} lacks its {name}: there is no folder of that name. {ways}")
        if name.startswith("tokenizer"):
            check_tokenizer(folder / name)
        if not name.startswith(WEIGHTLESS):
            parts[name] = sum(count(read_header(path)) for path in weight_files(folder / name))
    return parts


def check_tokenizer(part: Path) -> None:
    """Raise ModelError where the folder of a tokenizer holds no words."""
    if not any((part / name).is_file() for name in VOCABULARIES):
        raise ModelError(
            f"{part} holds no vocabulary: {', '.join(VOCABULARIES[:-1])} or {VOCABULARIES[-1]} is due. "
            "Get it again."
        )


def weight_files(part: Path) -> list[Path]:
    """The safetensors files that hold the weights of a part. Raises ModelError where one is missing."""
    for stem in WEIGHTS:
        if (single := part / f"{stem}.safetensors").is_file():
            return [single]
        index = part / f"{stem}.safetensors.index.json"
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (OSError, ValueError, KeyError, AttributeError) as error:
                raise ModelError(f"{index} can't be read. Get it again.") from error
            missing = [name for name in names if not (part / name).is_file()]
            if missing:
                raise ModelError(
                    f"{part} lacks {len(missing)} of its {len(names)} files: {missing[0]}. Get it again."
                )
            return [part / name for name in names]
    if any(path.suffix in PICKLES for path in part.iterdir()):
        raise ModelError(f"The weights in {part} are PyTorch pickles, and safetensors are due. {_SAFE_PART}")
    raise ModelError(f"{part} holds no weights: {WEIGHTS[0]}.safetensors is missing. Get it again.")
