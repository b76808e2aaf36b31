"""Which learned solver goes with a model: its own, else one published for it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from app.catalogue.finding import Found
from app.catalogue.table import ModelError
from app.disk import is_full
from solver import convert


def solver_folder(found: Found, *, network: bool = True) -> Path | None:
    """The folder of the model's solver, as `LearnedSolver.load` reads it, or None where there is none.

    A model's own lies in its `solver/`. One that was published for it is taken from the hub's cache, or where
    `network` allows it from the hub, and converted once; without it the model does without.

    Raises ModelError, in words, where the published file is not what it should be.
    """
    if (found.path / "solver").is_dir():
        return found.path / "solver"
    if found.entry is None or not found.entry.published_solver:
        return None
    from huggingface_hub import cached_assets_path, constants, hf_hub_download

    allowed = network and not constants.is_offline_mode()
    try:
        file = hf_hub_download(found.entry.published_solver, convert.FILE, local_files_only=not allowed)
    # Nobody asked for it by name, so a model is used without it, whatever the reason.
    except Exception:
        return None
    # By the file's revision, so that new weights are converted anew.
    revision = Path(file).parent.name
    folder = cached_assets_path(
        "diffusion-preview", f"solver-{found.entry.name}", revision, assets_dir=constants.HF_ASSETS_CACHE
    )
    if not (folder / convert.CONFIG_FILE).is_file():
        draft = folder.with_name(f"{folder.name}.{os.getpid()}")  # so that no half of it is ever used
        try:
            convert.convert(file, draft)
            os.replace(draft, folder)
        except (OSError, ValueError) as error:
            shutil.rmtree(draft, ignore_errors=True)
            why = f"there is no room in {folder.parent}" if is_full(error) else str(error)
            raise ModelError(
                f"The solver published for {found.entry.name} can't be used: {why.rstrip('.')}. "
                "Another can be "
                "named by --solver."
            ) from error
    return folder
