"""The safety checker that comes with Stable Diffusion: what it flags is held back, in words.

It compares a picture with seventeen concepts that its makers keep to themselves, and often errs. It is on
where a model brings one; whoever runs the app can turn it off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from app.catalogue.files import SAFETY, read_header, weight_files
from app.catalogue.table import ModelError
from app.jobs.job import Failed
from app.models.weights import check_finite

HELD_BACK = Failed(
    "This picture is not shown: the safety checker that comes with the model took it for one that is not "
    "safe to show. It often errs. Take another seed, or other words."
)
_OFF = "Get the folder again, or start with --no-safety-checker."
_UNCHECKED = "its pictures are shown unchecked."


@dataclass(frozen=True, eq=False)
class SafetyChecker:
    """diffusers' checker and the processor that prepares pictures for it, on one device."""

    checker: Any
    processor: Any

    @torch.inference_mode()
    def flagged(self, pictures: Sequence[Image.Image]) -> list[bool]:
        """Which of these RGB pictures it takes for unsafe to show."""
        if not pictures:
            return []
        pixels = self.processor(list(pictures), return_tensors="pt").pixel_values
        # It would paint what it flags black; so it gets stand-ins, and the pictures stay as they are.
        stand_ins = [np.zeros(1) for _ in pictures]
        _, flags = self.checker(
            clip_input=pixels.to(self.checker.device, self.checker.dtype), images=stand_ins
        )
        return [bool(flag) for flag in flags]


def safety_of(
    folder: Path, device: torch.device, wanted: bool, checkpoint: Path | None = None
) -> tuple[SafetyChecker | None, tuple[str, ...]]:
    """What looks at a model's pictures, and a warning where nothing does though something should.

    Args:
        folder: the model's, or that with the configs of a checkpoint.
        wanted: whether to have the checker that the model comes with.
        checkpoint: a single file with the weights, which never holds those of a checker.

    Raises ModelError, in words, where the model names one that is missing or damaged.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    named = _names_checker(index)
    if not wanted:
        off = f"The safety checker that the model comes with is switched off: {_UNCHECKED}"
        return None, (off,) if named else ()
    if checkpoint and not any((folder / "safety_checker").glob("*.safetensors")):
        alone = f"{checkpoint.name} comes without a safety checker: {_UNCHECKED}"
        return None, (alone,) if index["_class_name"] == "StableDiffusionPipeline" else ()
    if not named and index.get("requires_safety_checker"):
        return None, (f"The model lacks the safety checker that its pipeline asks for: {_UNCHECKED}",)
    return load_safety_checker(folder, device), ()


def _names_checker(index: Mapping[str, Any]) -> bool:
    return None not in (index.get("safety_checker") or [None])


def load_safety_checker(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> SafetyChecker | None:
    """The checker that the model in `folder` comes with, or None where it comes without one.

    Raises ModelError, in words, where the model names one that is missing or damaged.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
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
    # What a damaged file raises depends on where the damage is.
    except Exception as error:
        raise ModelError(f"The safety checker in {folder} can't be read. {_OFF}") from error
    if report["missing_keys"]:
        missing = len(report["missing_keys"])
        raise ModelError(f"The safety checker in {folder} lacks {missing} of its weights. {_OFF}")
    check_finite(checker, f"the safety checker in {folder}", _OFF)
    return SafetyChecker(checker.to(device).eval().requires_grad_(False), processor)
