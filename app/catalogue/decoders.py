"""Which small decoder goes with a model: for previews, and for pictures while they are being made."""

from __future__ import annotations

from pathlib import Path

from app.catalogue.finding import Found, fetch
from app.catalogue.table import ModelError

# Where a model's own lies in its folder.
FOLDER = "preview_decoder"
FILES = ("config.json", "diffusion_pytorch_model.safetensors")


def decoder_folder(found: Found) -> Path | None:
    """The folder of the model's preview decoder, or None where none is on this machine.

    A model's own lies in its `preview_decoder/`. One that was published for it is taken from the hub's cache;
    it is not fetched, since a model does well without.
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
