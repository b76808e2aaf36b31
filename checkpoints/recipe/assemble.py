"""Put the trained parts together as a stock pipeline: `python -m checkpoints.recipe.assemble`.

Writes `checkpoints/landscapes`: fp16 safetensors in shards below 10 MB, the scheduler's config, and
`model_index.json`, so that `DiffusionPipeline.from_pretrained` loads it like any other.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import diffusers
import torch
from diffusers import DPMSolverMultistepScheduler, UNet2DConditionModel
from transformers import AutoTokenizer, CLIPTextModel

from checkpoints.autoencoder import LandscapesAutoencoder
from checkpoints.readers import READERS
from checkpoints.recipe.train_unet import SCHEDULE

SHARD = "9MB"


def _edit_config(folder: Path, **changes: str) -> None:
    """Change entries of a saved config, and leave out where on this machine its weights came from."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    config.pop("_name_or_path", None)
    file.write_text(json.dumps(config, indent=2) + "\n")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("build/landscapes"), help="where the stages left their parts"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("checkpoints/landscapes"), help="the pipeline's folder"
    )
    args = parser.parse_args(argv)
    parts, out = args.work / "pipeline", args.out
    for folder in ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "readers"):
        shutil.rmtree(out / folder, ignore_errors=True)
    for folder, kind in {
        "unet": UNet2DConditionModel,
        "vae": LandscapesAutoencoder,
        "text_encoder": CLIPTextModel,
    }.items():
        module = kind.from_pretrained(parts / folder).to(torch.float16)
        module.save_pretrained(out / folder, max_shard_size=SHARD)
        _edit_config(out / folder)
    # transformers loads weights in the dtype that the config names, diffusers in float32: a stock user,
    # who names none, must get the same for both.
    _edit_config(out / "text_encoder", dtype="float32")
    AutoTokenizer.from_pretrained(parts / "tokenizer").save_pretrained(out / "tokenizer")
    scheduler = DPMSolverMultistepScheduler(
        **SCHEDULE, algorithm_type="dpmsolver++", solver_order=2, timestep_spacing="trailing", steps_offset=1
    )
    scheduler.save_pretrained(out / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["checkpoints", "LandscapesAutoencoder"],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    for name, kind in READERS.items():
        if (args.work / "readers" / name).exists():
            reader = kind.from_pretrained(args.work / "readers" / name).to(torch.float16)
            reader.save_pretrained(out / "readers" / name, max_shard_size=SHARD)
            _edit_config(out / "readers" / name)
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    print(f"{out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
