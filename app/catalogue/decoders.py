"""Find the preview decoder of a model, which also decodes its unfinished pictures."""

from __future__ import annotations

from pathlib import Path

from app.catalogue.finding import Found, fetch
from app.catalogue.table import ModelError

# Subfolder of a model with its own preview decoder.
FOLDER = "preview_decoder"
FILES = ("config.json", "diffusion_pytorch_model.safetensors")


def decoder_folder(found: Found) -> Path | None:
    """Return the folder of the model's preview decoder, or None if none is on this machine.

    It is the model's `preview_decoder/`, or else the published one from the hub's cache. Nothing is
    downloaded, since the model works without.
    """
    if (found.path / FOLDER).is_dir():
        return found.path / FOLDER
    if found.entry is None or not found.entry.decoder:
        return None
    try:
        folder = fetch(found.entry.decoder, network=False, only=FILES)
    except ModelError:
        return None
    return folder if all((folder / name).is_file() for name in FILES) else None
