"""Find the folder or file of the model that `--model` names, downloading it from the hub if necessary."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.catalogue.files import (
    check_folder,
    check_tokenizer,
    count,
    part_names,
    read_header,
    read_index,
    refuse_other_formats,
    weight_files,
)
from app.catalogue.table import CATALOGUE, CatalogueEntry, ModelError, entry_for
from app.disk import free_bytes, is_full

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

# Files to download of a repository in the diffusers layout: no pickles, no copies in other formats, and no
# single-file checkpoint beside the components.
INCLUDE = (
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "*/diffusion_pytorch_model*.safetensors",
    "*/model*.safetensors",
)
EXCLUDE = ("*.fp16*", "*.bf16*", "*.non_ema*", "vae_1_0/*", "*.bin.index.json")
CONFIGS = INCLUDE[:4]
INDEX = ("model_index.json", "modular_model_index.json")

# Prefixes of the names of tensors in a single-file checkpoint, and parts of the names in a LoRA.
DENOISER = "model.diffusion_model."
PARTS = {  # by prefix of the components' names
    "text_encoder": ("cond_stage_model.", "conditioner.", "text_encoders."),
    "vae": ("first_stage_model.", "vae."),
}
LORA = ("lora_", ".lora.", ".lora_", "lokr_", "hada_")


@dataclass(frozen=True)
class Found:
    """A model on this machine whose files are complete.

    Attributes:
        name: as shown to users and in records: the entry's name, the hub id, or the folder's or file's name.
        path: a folder in the diffusers layout, or a single-file checkpoint.
        pipeline: diffusers' class for it.
        parts: numbers of weights by component; of a single file all under "checkpoint".
        entry: its catalogue entry, or None.
        configs: for a single file, the folder with its configs.
        rest: for a single file without them, the components that the folder with the configs brings.
    """

    name: str
    path: Path
    pipeline: str
    parts: dict[str, int]
    entry: CatalogueEntry | None = None
    configs: Path | None = None
    rest: tuple[str, ...] = ()


def is_local(model: str) -> bool:
    """Whether `model` is part of the repository or a path on the disk, so that no hub is needed."""
    entry = entry_for(model)
    return (
        entry.folder is not None
        if entry
        else Path(model).expanduser().exists() or not HUB_ID.fullmatch(model)
    )


def name_of(model: str) -> str:
    """Name of the model, as in `Found`."""
    entry, path = entry_for(model), Path(model).expanduser()
    if entry:
        return entry.name
    return path.stem if path.is_file() else path.resolve().name if path.is_dir() else model


def find(
    model: str, *, network: bool = True, configs: Path | None = None, without: Sequence[str] = ()
) -> Found:
    """Find a model by its entry's name, folder, `.safetensors` file or hub id.

    Files in the hub's cache are used; others are downloaded, unless HF_HUB_OFFLINE=1.

    Args:
        network: whether to download.
        configs: for a single file, a folder in the diffusers layout with its configs and tokenizers; by
            default those of the same model's entry are taken from the hub.
        without: components that are not needed.

    Raises:
        ModelError: the model is unknown, unavailable or incomplete; the message gives the next step.
    """
    entry, path = entry_for(model), Path(model).expanduser()
    if entry and entry.folder:
        return _in_folder(entry.name, entry.folder, entry, without)
    if entry is None and path.is_dir():
        return _in_folder(path.resolve().name, path, None, without)
    if entry is None and path.is_file():
        return _in_file(path, configs, network)
    if entry is None and not HUB_ID.fullmatch(model):
        raise ModelError(_unknown(model))
    source = entry.source if entry else model
    name = entry.name if entry else source
    if entry is None and network:  # before gigabytes are fetched
        index = read_index(fetch(source, network=network, only=INDEX))
        check_pipeline(source, index["_class_name"])
    folder = fetch(source, network=network, entry=entry)
    try:
        return _in_folder(name, folder, entry, without)
    except ModelError as error:
        if not network:
            raise ModelError(f"{error} On a machine with a network run {command(source)}") from error
    folder = fetch(source, network=network, entry=entry, cached=False)  # the cache may be incomplete
    try:
        return _in_folder(name, folder, entry, without)
    except ModelError as error:
        raise ModelError(f"{error} Delete {folder.parents[1]} and start again.") from error


def check_pipeline(source: str | Path, pipeline: str) -> None:
    """Raise ModelError if a model's pipeline is not one that runs here."""
    from solver.diffusion import family_of

    try:
        family_of(pipeline)
    except ValueError as error:
        raise ModelError(f"{source} can't be used: {error}. Choose another --model.") from error


def _in_folder(name: str, folder: Path, entry: CatalogueEntry | None, without: Sequence[str]) -> Found:
    try:
        return Found(name, folder, read_index(folder)["_class_name"], check_folder(folder, without), entry)
    except ModelError as error:
        if entry and entry.folder:
            raise ModelError(
                f"{error} It ships with the repository: restore it with `git checkout -- {entry.source}`."
            ) from error
        raise


def _unknown(model: str) -> str:
    names = [entry.name for entry in CATALOGUE]
    near = difflib.get_close_matches(model.lower(), names, n=1, cutoff=0.4)
    if os.sep in model or Path(model).suffix:
        return f"There is no {model}. Check the path, or choose one of: {', '.join(names)}."
    meant = f" Do you mean {near[0]}?" if near else ""
    return (
        f"There is no model {model}.{meant} Choose one of {', '.join(names)}; a folder in the diffusers "
        "layout; a .safetensors file; or a hub id such as owner/model."
    )


def _in_file(path: Path, configs: Path | None, network: bool) -> Found:
    refuse_other_formats(path)
    header = read_header(path)
    entry = _recognized(path, header)
    from_hub = configs is None
    if configs is None:
        try:
            configs = fetch(entry.source, network=network, entry=entry, only=CONFIGS)
        except ModelError as error:
            raise ModelError(
                f"{path.name} is a single-file checkpoint without configs and tokenizers. Name a folder that "
                f"has them with --configs. {error}"
            ) from error
    elif read_index(configs)["_class_name"] != entry.pipeline:
        raise ModelError(
            f"{path.name} needs the configs of a {entry.pipeline}, and {configs} has those of a "
            f"{read_index(configs)['_class_name']}. Choose another --configs."
        )
    names = part_names(read_index(configs))
    for name in names:
        if name.startswith("tokenizer"):
            check_tokenizer(configs / name)
    lacking = [part for part, tensors in PARTS.items() if not any(key.startswith(tensors) for key in header)]
    rest = tuple(name for name in names if name.startswith(tuple(lacking)))
    try:
        parts = _weights(configs, rest)
    except ModelError as error:
        if not (from_hub and network):
            raise ModelError(
                f"{path} has no {' and no '.join(rest)}, and {configs} does not have them complete. Choose a "
                f"folder that has with --configs, or use --model {entry.name}"
            ) from error
        only = (*CONFIGS, *(f"{name}/*.safetensors" for name in rest))
        configs = fetch(entry.source, network=network, entry=entry, only=only, cached=False)
        parts = _weights(configs, rest)
    return Found(path.stem, path, entry.pipeline, {"checkpoint": count(header)} | parts, entry, configs, rest)


def _weights(folder: Path, names: Sequence[str]) -> dict[str, int]:
    """Numbers of weights of components in a folder. Raises ModelError where one is not complete."""
    if missing := [name for name in names if not (folder / name).is_dir()]:
        raise ModelError(f"{folder} has no folder {missing[0]}.")
    return {name: sum(count(read_header(file)) for file in weight_files(folder / name)) for name in names}


def _recognized(path: Path, header: dict) -> CatalogueEntry:
    """Recognise a single file's model by the names and shapes of its tensors; return its entry."""
    import torch
    from diffusers.loaders.single_file_utils import fetch_diffusers_config

    if any(part in name.lower() for name in header for part in LORA):
        raise ModelError(
            f"{path} is a LoRA, not a whole model. Use a model that it has been merged into (in "
            "diffusers with `load_lora_weights`, `fuse_lora` and `save_pretrained`)."
        )
    if "edm_vpred.sigma_max" in header:
        raise ModelError(f"{path} was trained on noise levels of EDM, which no solver here follows.")
    tensors = {name: torch.empty(entry["shape"], device="meta") for name, entry in header.items()}
    try:
        entry = entry_for(fetch_diffusers_config(tensors)["pretrained_model_name_or_path"])
    # The library's guess can raise anything.
    except Exception:
        entry = None
    # Stable Diffusion 1.5 is the library's guess for anything that it does not know.
    if entry is None or (entry.name == "sd15" and not any(name.startswith(DENOISER) for name in tensors)):
        known = ", ".join(entry.name for entry in CATALOGUE if not entry.folder)
        raise ModelError(f"{path} is not a checkpoint of a known model ({known}).")
    return entry


def fetch(
    source: str,
    *,
    network: bool,
    entry: CatalogueEntry | None = None,
    only: tuple[str, ...] = INCLUDE,
    cached: bool = True,
) -> Path:
    """Return a hub repository's folder in the hub's cache, downloading what is missing.

    Args:
        network: whether to download.
        entry: its catalogue entry, for messages.
        only: patterns of the files to download.
        cached: whether to trust that the cached snapshot is complete.

    Raises:
        ModelError: it cannot be downloaded; the message gives the next step.
    """
    from huggingface_hub import constants, errors, snapshot_download

    wanted: dict[str, Any] = {"allow_patterns": list(only), "ignore_patterns": list(EXCLUDE)}
    try:
        if cached:
            return Path(snapshot_download(source, local_files_only=True, **wanted))
    except errors.LocalEntryNotFoundError:
        pass  # not in the cache, or incomplete
    except errors.HFValidationError as error:
        raise ModelError(f"{source} is not a hub id: {error}") from error
    if not network or constants.is_offline_mode():
        raise ModelError(
            f"{source} is not in the hub's cache ({constants.HF_HUB_CACHE}), and the network is switched "
            f"off. Download it where there is a network: {command(source, only)}"
        )
    needed = 0
    try:
        files = snapshot_download(source, dry_run=True, **wanted)
        needed = sum(file.file_size or 0 for file in files if file.will_download)
        _check_space(source, needed)
        return Path(snapshot_download(source, **wanted))
    except errors.GatedRepoError as error:
        raise ModelError(_gated(source, entry)) from error
    except errors.DisabledRepoError as error:
        raise ModelError(f"The hub has disabled {source}. Choose another model.") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(_missing(source)) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise ModelError(f"The hub answered {status} for {source}. Try again in a few minutes.") from error
    except ModelError:
        raise
    # A broken connection or a full disk can raise anything, in several libraries.
    except Exception as error:
        if is_full(error):
            raise ModelError(_full(source, needed)) from error
        raise ModelError(_unreachable(source, only)) from error


_ELSEWHERE = "Make room, or set HF_HOME to a folder on a larger disk."


def command(source: str, only: tuple[str, ...] = INCLUDE) -> str:
    """Shell command that downloads the same files."""
    patterns = [f'--include "{pattern}"' for pattern in only] + [f'--exclude "{p}"' for p in EXCLUDE]
    return f"`hf download {source} {' '.join(patterns)}`"


def _check_space(source: str, needed: int) -> None:
    from huggingface_hub import constants

    free = free_bytes(Path(constants.HF_HUB_CACHE))
    if needed > free:
        raise ModelError(
            f"{source} needs {needed / 2**30:.1f} GiB in the hub's cache ({constants.HF_HUB_CACHE}), and "
            f"{free / 2**30:.1f} GiB are free there. {_ELSEWHERE}"
        )


def _full(source: str, needed: int) -> str:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    return (
        f"The disk became full while {source} was downloaded: it needs {needed / 2**30:.1f} GiB in the hub's "
        f"cache ({cache}), and {free_bytes(cache) / 2**30:.1f} GiB are free. Downloaded files are kept. "
        f"{_ELSEWHERE}"
    )


def _gated(source: str, entry: CatalogueEntry | None) -> str:
    licence = f" ({entry.licence})" if entry else ""
    return (
        f"{source} is gated: its licence{licence} has to be accepted first. Log in at "
        f"https://huggingface.co/{source} and accept it, then run `hf auth login` here, or set HF_TOKEN."
    )


def _missing(source: str) -> str:
    near = difflib.get_close_matches(source, [entry.source for entry in CATALOGUE], n=1, cutoff=0.6)
    meant = f" Do you mean {near[0]}?" if near else ""
    return (
        f"There is no folder {source} here and no such repository on the hub, or it is private.{meant} For a "
        "private one run `hf auth login`, or set HF_TOKEN."
    )


def _unreachable(source: str, only: tuple[str, ...]) -> str:
    return (
        f"The hub can't be reached, and {source} is not complete in its cache. Check the network and start "
        f"again (downloaded files are kept), or download it elsewhere: {command(source, only)}"
    )
