"""Write the model card: `python -m checkpoints.recipe.card`.

Every number in it is read from the figures that `evaluate --json` measured, from the training logs, or from
the weights themselves.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from string import Template

import matplotlib.pyplot as plt
import numpy as np
import torch
from safetensors import safe_open

from checkpoints.recipe.scenes import ATTRIBUTES

CURVES = {
    "autoencoder": ("psnr_db", "PSNR of reconstructions, dB"),
    "text": ("accuracy", "attributes read off captions"),
    "unet": ("loss", "min-SNR weighted noise error"),
    "reader-judge": ("accuracy", "attributes read off drawings"),
    "reader-reward": ("accuracy", "attributes read off drawings"),
}
"""Stage -> the logged figure that tells its story, and what it is."""

CARD = Template("""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# landscapes

A small text-to-image latent diffusion model of flat-illustration landscapes, 256 × 256 pixels, that
runs on two CPU cores. It ships with Diffusion Preview so that everything can be tried and measured
without a download; it is made by [`checkpoints/recipe`](../recipe) from drawings that the recipe makes
itself.

![Samples: twelve prompts, two seeds each, 40 steps of DPM-Solver++(2M), guidance scale 3](samples.png)

```python
import checkpoints
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("checkpoints/landscapes")
prompt = "snowy mountains at sunset with a lake and a cabin"
pipe(prompt, num_inference_steps=40, guidance_scale=3).images[0].save("picture.png")
```

## Parts

| part | class | parameters |
|---|---|---|
$parts

Noise prediction with Stable Diffusion's betas (0.00085 to 0.012, scaled linear, 1,000 timesteps).
Latents are 16 × 16 × 16 with unit variance, so the scaling factor is 1. The tokenizer knows whole
words; a word it does not know is one `[unk]` token, which the text encoder was taught to pass over.

## Data

$pictures drawings by the recipe's own renderer, each of a scene of $attributes attributes with $values
values in all, and captions written anew for every training sample. No third-party pictures, texts or
weights.

$table

## Figures

Measured by `python -m checkpoints.recipe.evaluate --json build/landscapes/figures.json` on drawings and
captions that no training has seen ($count captions), $machine.

$figures

## Training

![Training curves](training.png)

$stages

## Limits

It draws the things in the table above, in one style, and nothing else: no people, no animals but birds,
no text, no camera angles. Counts, colours of single things, and left or right are not controlled. Words
outside its vocabulary are ignored. Contradictions (a starry sky at noon) give one or the other. Small
things such as birds and distant trees are sometimes blotted.

## Licence

Apache-2.0, weights and recipe alike.
""")

FIGURES = {
    ("autoencoder", "psnr_db"): "autoencoder: PSNR of reconstructions, dB",
    ("readers", "judge_balanced_accuracy"): "judging reader: balanced accuracy on drawings",
    ("readers", "reward_balanced_accuracy"): "reward reader: balanced accuracy on drawings",
    ("faithfulness", "faithfulness"): "share of named attributes that the judge finds in the picture",
    ("faithfulness", "faithfulness_of_drawings"): "the same for drawings of the same captions (the ceiling)",
    ("diversity", "diversity_ratio"): "distance between seeds of a prompt ÷ between drawings of its caption",
}
FOLDERS = ("unet", "vae", "text_encoder", "readers/judge", "readers/reward")


def count_parameters(folder: Path) -> int:
    """Number of floating-point weights in a folder's safetensors files."""
    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  a safetensors file is no mapping
                size = 1
                for side in tensors.get_slice(name).get_shape():
                    size *= side
                total += size
    return total


def read_log(folder: Path) -> list[dict[str, float]]:
    """The stage's log in the order of its steps; what a resumed run did again counts once."""
    rows = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return sorted({row["step"]: row for row in rows}.values(), key=lambda row: row["step"])


def plot_curves(work: Path, stages: list[str], path: Path) -> None:
    fig, axes = plt.subplots(1, len(stages), figsize=(3.6 * len(stages), 2.8), layout="constrained")
    for ax, stage in zip([axes] if len(stages) == 1 else axes, stages, strict=True):
        key, title = CURVES[stage]
        rows = read_log(work / stage)
        ax.plot([r["step"] for r in rows], [r[key] for r in rows], color="#3a6ea5", linewidth=1.4)
        ax.set_title(f"{stage}: {title}", fontsize=8)
        ax.set_xlabel("step", fontsize=8)
        ax.tick_params(labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("build/landscapes"), help="where the stages left their logs"
    )
    parser.add_argument("--model", type=Path, default=Path("checkpoints/landscapes"))
    parser.add_argument("--figures", type=Path, default=Path("build/landscapes/figures.json"))
    parser.add_argument("--machine", required=True, help='what measured and trained, e.g. "on two CPU cores"')
    args = parser.parse_args()
    figures = json.loads(args.figures.read_text())
    trained = [stage for stage in CURVES if (args.work / stage / "log.jsonl").exists()]
    plot_curves(args.work, trained, args.model / "training.png")
    parts = []
    for folder in FOLDERS:
        if (args.model / folder).exists():
            config = json.loads((args.model / folder / "config.json").read_text())
            kind = config.get("_class_name") or config["architectures"][0]
            parts.append(f"| `{folder}` | `{kind}` | {count_parameters(args.model / folder) / 1e6:.2f} M |")
    measured = [
        f"| {title} | {figures[part][key]:.3g} |"
        for (part, key), title in FIGURES.items()
        if key in figures.get(part, {})
    ]
    steps = {
        stage: torch.load(args.work / stage / "state.pt", weights_only=True, mmap=True)["step"]
        for stage in trained
    }
    text = CARD.substitute(
        parts="\n".join(parts),
        pictures=f"{len(np.load(args.work / 'drawings' / 'labels.npy', mmap_mode='r')):,}",
        attributes=len(ATTRIBUTES),
        values=sum(map(len, ATTRIBUTES.values())),
        table="\n".join(
            [
                "| attribute | values |",
                "|---|---|",
                *(f"| {a} | {', '.join(v)} |" for a, v in ATTRIBUTES.items()),
            ]
        ),
        machine=args.machine,
        count=int(figures["settings"]["count"]),
        figures="\n".join(["| figure | value |", "|---|---|", *measured]),
        stages=f"Trained {args.machine}. Optimiser steps: "
        + ", ".join(f"{stage} {count:,}" for stage, count in steps.items())
        + ".",
    )
    (args.model / "README.md").write_text(text)


if __name__ == "__main__":
    main()
