"""Find the learned solver of a model: its own, or one published for it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from app.catalogue.finding import Found
from app.catalogue.table import ModelError
from app.disk import is_full
from solver import convert


def solver_folder(found: Found, *, network: bool = True) -> Path | None:
    """Return the folder of the model's solver, for `LearnedSolver.load`, or None if there is none.

    It is the model's `solver/`, or else the published solver from the hub's cache or, if `network`, from the
    hub, converted once.

    Raises:
        ModelError: the published file cannot be converted.
    """
    if (found.path / "solver").is_dir():
        return found.path / "solver"
    if found.entry is None or not found.entry.published_solver:
        return None
    from huggingface_hub import cached_assets_path, constants, hf_hub_download

    allowed = network and not constants.is_offline_mode()
    try:
        file = hf_hub_download(found.entry.published_solver, convert.FILE, local_files_only=not allowed)
    # The user did not ask for it, so the model is used without it, whatever the reason.
    except Exception:
        return None
    # One folder per revision, so that new weights are converted again.
    revision = Path(file).parent.name
    folder = cached_assets_path(
        "diffusion-preview", f"solver-{found.entry.name}", revision, assets_dir=constants.HF_ASSETS_CACHE
    )
    if not (folder / convert.CONFIG_FILE).is_file():
        draft = folder.with_name(f"{folder.name}.{os.getpid()}")  # renamed when complete
        try:
            convert.convert(file, draft)
            os.replace(draft, folder)
        except (OSError, ValueError) as error:
            shutil.rmtree(draft, ignore_errors=True)
            why = f"there is no room in {folder.parent}" if is_full(error) else str(error)
            raise ModelError(
                f"The solver published for {found.entry.name} can't be used: {why.rstrip('.')}. "
                "Choose another one with --solver."
            ) from error
    return folder
