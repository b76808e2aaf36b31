"""Stable Diffusion's safety checker: pictures that it flags are not shown.

It compares a picture with seventeen undisclosed concepts, and often errs. It is on if the model comes with
one; `--no-safety-checker` switches it off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from app.catalogue.files import SAFETY, read_header, read_index, weight_files
from app.catalogue.table import ModelError
from app.jobs.job import Failed
from app.models.weights import check_finite

HELD_BACK = Failed(
    "This picture is not shown: the model's safety checker flagged it as unsafe. It often errs. Try another "
    "seed or another prompt."
)
_OFF = "Download the model again, or start with --no-safety-checker."
_UNCHECKED = "its pictures are shown unchecked."


@dataclass(frozen=True, eq=False)
class SafetyChecker:
    """diffusers' safety checker and its image processor, on one device."""

    checker: Any
    processor: Any

    @torch.inference_mode()
    def flagged(self, pictures: Sequence[Image.Image]) -> list[bool]:
        """Return for each RGB picture whether it is flagged as unsafe."""
        if not pictures:
            return []
        pixels = self.processor(list(pictures), return_tensors="pt").pixel_values
        # The checker blackens the images that it flags; give it stand-ins.
        stand_ins = [np.zeros(1) for _ in pictures]
        _, flags = self.checker(
            clip_input=pixels.to(self.checker.device, self.checker.dtype), images=stand_ins
        )
        return [bool(flag) for flag in flags]


def safety_of(
    folder: Path, device: torch.device, wanted: bool, checkpoint: Path | None = None
) -> tuple[SafetyChecker | None, tuple[str, ...]]:
    """Load a model's safety checker, and return it with warnings about pictures that are unchecked.

    Args:
        folder: the model's folder, or the folder with the configs of a single-file checkpoint.
        wanted: whether to use the model's checker.
        checkpoint: the single file, which never contains a checker's weights.

    Raises:
        ModelError: the model names a checker that is missing or damaged.
    """
    index = read_index(folder)
    named = _names_checker(index)
    if not wanted:
        off = f"The safety checker that the model comes with is switched off: {_UNCHECKED}"
        return None, (off,) if named else ()
    if checkpoint and not any((folder / "safety_checker").glob("*.safetensors")):
        alone = f"{checkpoint.name} comes without a safety checker: {_UNCHECKED}"
        return None, (alone,) if index["_class_name"] == "StableDiffusionPipeline" else ()
    if not named and index.get("requires_safety_checker"):
        return None, (f"The model lacks the safety checker that its pipeline requires: {_UNCHECKED}",)
    return load_safety_checker(folder, device), ()


def _names_checker(index: Mapping[str, Any]) -> bool:
    return None not in (index.get("safety_checker") or [None])


def load_safety_checker(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> SafetyChecker | None:
    """Load the safety checker of the model in `folder`; None if the model names none.

    Raises:
        ModelError: the checker is missing or damaged.
    """
    index = read_index(folder)
    if not _names_checker(index):
        return None
    for name in SAFETY:
        if not (folder / name).is_dir():
            raise ModelError(f"{folder} should have a safety checker, but there is no folder {name}. {_OFF}")
    for path in weight_files(folder / "safety_checker"):
        read_header(path)
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor

    try:
        checker, report = StableDiffusionSafetyChecker.from_pretrained(
            folder / "safety_checker", local_files_only=True, dtype=dtype, output_loading_info=True
        )
        processor = CLIPImageProcessor.from_pretrained(folder / "feature_extractor", local_files_only=True)
    # A damaged file can raise anything.
    except Exception as error:
        raise ModelError(f"The safety checker in {folder} can't be read. {_OFF}") from error
    if report["missing_keys"]:
        missing = len(report["missing_keys"])
        raise ModelError(f"The safety checker in {folder} lacks {missing} of its weights. {_OFF}")
    check_finite(checker, f"the safety checker in {folder}", _OFF)
    return SafetyChecker(checker.to(device).eval().requires_grad_(False), processor)
