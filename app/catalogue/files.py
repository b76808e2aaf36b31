"""Inspect model files by their headers: no weight is read, and nothing is ever unpickled."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.catalogue.table import ModelError

WEIGHTS = ("diffusion_pytorch_model", "model")  # file names that diffusers and transformers give weights
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
# Prefixes of the names of components without weights.
WEIGHTLESS = ("scheduler", "tokenizer", "feature_extractor", "image_processor", "processor")
# Components that only the safety check needs.
SAFETY = ("safety_checker", "feature_extractor")
# Files that hold a tokenizer's vocabulary; without any, transformers silently makes an empty one.
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")
# Bounds of JSON in a model's folder, far above those of any real file: bytes, nesting, and values.
MAX_JSON_BYTES = 16 * 2**20
MAX_JSON_DEPTH = 32
MAX_JSON_VALUES = 1_000_000
MAX_RANK = 16  # of a tensor
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def parse_json(data: bytes) -> Any:
    """Parse JSON from a model's folder. Raises ValueError, at little cost, beyond the bounds above, too."""
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"it has more than {MAX_JSON_BYTES / 2**20:.0f} MB of JSON")
    marks = _STRING.sub(b"", data) if data.count(b'"') <= 2 * MAX_JSON_VALUES else b'"'
    brackets = marks.translate(None, _NOT_BRACKETS)
    if b'"' in marks or marks.count(b",") + len(brackets) // 2 > MAX_JSON_VALUES:
        raise ValueError(f"it has more than {MAX_JSON_VALUES:,} values, or strings without an end")
    for _ in range(MAX_JSON_DEPTH):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    if brackets:
        raise ValueError("it is nested too deeply, or its brackets do not match")
    return json.loads(data)


def read_json(path: Path) -> Any:
    """Read a JSON file of a model's folder. Raises FileNotFoundError, OSError or ValueError."""
    with path.open("rb") as file:
        return parse_json(file.read(MAX_JSON_BYTES + 1))


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Read which tensors a safetensors file has: name -> {"dtype", "shape", "data_offsets"}.

    Raises:
        ModelError: it is another kind of file, or truncated.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if start.startswith(b"version "):
                raise ModelError(
                    f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder."
                )
            if start.startswith(b"GGUF"):
                raise ModelError(f"{path} is a GGUF file under another name. {_WHOLE}")
            if start[:2] in (b"PK", b"\x80\x02", b"\x80\x04"):
                raise ModelError(f"{path} is a PyTorch pickle under another name. {_SAFE_PART}")
            (length,) = struct.unpack("<Q", start)  # struct.error for fewer than eight bytes
            if not 2 <= length <= MAX_JSON_BYTES:
                raise ValueError
            header = file.read(length)
            if len(header) < length:
                raise ModelError(_cut_off(path, size, 8 + length))
        tensors = parse_json(header)
        tensors.pop("__metadata__", None)
        end = 8 + length + max(map(_end, tensors.values()), default=0)
    except OSError as error:
        raise ModelError(f"{path} can't be read ({error.strerror}).") from error
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(f"{path} is not a safetensors file, despite its name. Download it again.") from error
    if size < end:
        raise ModelError(_cut_off(path, size, end))
    return tensors


def _end(entry: Mapping[str, Any]) -> int:
    """Return where a tensor's data end. Raises ValueError, KeyError or TypeError for a malformed entry."""
    shape, (begin, end) = entry["shape"], entry["data_offsets"]
    numbers = [*shape, begin, end]
    if not isinstance(entry["dtype"], str) or len(shape) > MAX_RANK:
        raise ValueError
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise ValueError
    return int(end)


_WHOLE = (
    "It holds quantised weights of a network alone, which this app does not read. Use the model that it was "
    "made from, as a folder, a hub id or safetensors; --offload model needs less memory."
)
_SAFE = "Loading a pickle can run code, so it is refused. Use the model's safetensors, or convert it "
_SAFE_PART = (
    _SAFE + "on a machine where you trust it: `DiffusionPipeline.from_pretrained(OLD).save_pretrained(NEW)`."
)
_SAFE_FILE = (
    _SAFE + "on a machine where you trust it: "
    "`StableDiffusionPipeline.from_single_file(OLD).save_pretrained(NEW)`, or the model's own pipeline class."
)


def _cut_off(path: Path, size: int, due: int) -> str:
    return f"{path} is cut off: it has {size:,} bytes of at least {due:,}. Download it again."


def refuse_other_formats(path: Path) -> None:
    """Raise ModelError for a file whose name is that of a pickle or of a GGUF file."""
    if path.suffix.lower() == ".gguf":
        raise ModelError(f"{path} is a GGUF file. {_WHOLE}")
    if path.suffix in PICKLES:
        raise ModelError(f"{path} is a PyTorch pickle, but safetensors are needed. {_SAFE_FILE}")


def count(tensors: Mapping[str, Mapping[str, Any]]) -> int:
    """Number of weights in the tensors of a header."""
    return sum(math.prod(entry["shape"]) for entry in tensors.values())


def read_index(folder: Path) -> dict[str, Any]:
    """Read `model_index.json` of a folder in the diffusers layout; raise ModelError if there is none."""
    path = folder / "model_index.json"
    try:
        index = read_json(path)
    except FileNotFoundError:
        raise ModelError(f"{folder} is not a model in the diffusers layout: {_instead(folder)}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} can't be read. Download it again.") from error
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise ModelError(f"{path} names no pipeline. Download it again.")
    return index


def _instead(folder: Path) -> str:
    nested = sorted(path.parent for path in folder.glob("*/model_index.json"))
    files = sorted(folder.glob("*.safetensors"))
    if (folder / "modular_model_index.json").is_file():
        return (
            "it is made of modular blocks alone (modular_model_index.json), which this app does not run. "
            "Choose a model with a model_index.json."
        )
    if nested:
        return f"it has no model_index.json. Do you mean {nested[0]}?"
    if files:
        return f"it has no model_index.json. For the checkpoint in it, use --model {files[0]}"
    if any(path.suffix in PICKLES for path in folder.iterdir()):
        return f"it has no model_index.json, and its weights are pickles. {_SAFE_FILE}"
    return "it has no model_index.json. Choose the folder that holds that file."


def part_names(index: Mapping[str, Any]) -> list[str]:
    """Names of the components in an index, without settings and without those that are null."""
    return [
        name
        for name, source in index.items()
        if not name.startswith("_") and isinstance(source, list) and len(source) == 2 and None not in source
    ]


def check_folder(folder: Path, without: Sequence[str] = ()) -> dict[str, int]:
    """Check that all files of a model are complete; return the numbers of weights by component.

    Args:
        without: components that need not be there; they are not counted.

    Raises:
        ModelError: a file is missing or damaged.
    """
    parts = {}
    for name in part_names(read_index(folder)):
        if name in without:
            continue
        if not (folder / name).is_dir():
            ways = "Download it again" + (", or start with --no-safety-checker." if name in SAFETY else ".")
            raise ModelError(f"{folder} has no folder {name}. {ways}")
        if name.startswith("tokenizer"):
            check_tokenizer(folder / name)
        if not name.startswith(WEIGHTLESS):
            parts[name] = sum(count(read_header(path)) for path in weight_files(folder / name))
    return parts


def check_tokenizer(part: Path) -> None:
    """Raise ModelError if the folder of a tokenizer has no vocabulary."""
    if not any((part / name).is_file() for name in VOCABULARIES):
        raise ModelError(
            f"{part} has no vocabulary: {', '.join(VOCABULARIES[:-1])} or {VOCABULARIES[-1]} is needed. "
            "Download it again."
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long
        return False


def weight_files(part: Path) -> list[Path]:
    """Return the safetensors files with the weights of a component; raise ModelError if one is missing."""
    for stem in WEIGHTS:
        if (single := part / f"{stem}.safetensors").is_file():
            return [single]
        index = part / f"{stem}.safetensors.index.json"
        if index.is_file():
            try:
                names = sorted({str(name) for name in read_json(index)["weight_map"].values()})
                if not names:
                    raise ValueError("it names no files")
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise ModelError(f"{index} can't be read. Download it again.") from error
            missing = [name for name in names if not _is_file(part / name)]
            if missing:
                raise ModelError(
                    f"{part} lacks {len(missing)} of its {len(names)} files: {missing[0]}. Download it again."
                )
            return [part / name for name in names]
    if any(path.suffix in PICKLES for path in part.iterdir()):
        raise ModelError(
            f"The weights in {part} are PyTorch pickles, but safetensors are needed. {_SAFE_PART}"
        )
    raise ModelError(f"{part} has no weights: {WEIGHTS[0]}.safetensors is missing. Download it again.")
