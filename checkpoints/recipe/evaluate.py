"""Measure the embedded model: `python -m checkpoints.recipe.evaluate`.

Everything is held against drawings and captions that no training has seen (the `fresh` split), with 40 steps
of DPM-Solver++(2M) at guidance scale 3 through the stock pipeline. Each part can be run alone with --only.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import checkpoints  # noqa: F401  gives the pipeline its autoencoder class
from checkpoints.readers import READERS
from checkpoints.recipe.captions import caption
from checkpoints.recipe.data import picture_of, scene_of, to_pixels
from checkpoints.recipe.drawing import draw
from checkpoints.recipe.fit import pick_device
from checkpoints.recipe.scenes import ATTRIBUTES, Scene

STEPS, GUIDANCE = 40, 3.0
THUMBNAIL = 16


@dataclass
class Context:
    """What every measurement needs."""

    model: Path
    device: torch.device
    count: int
    batch: int

    def pipeline(self) -> DiffusionPipeline:
        pipe = DiffusionPipeline.from_pretrained(self.model).to(self.device)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def paint(self, pipe: DiffusionPipeline, prompts: list[str], seeds: list[int]) -> Tensor:
        """One picture per prompt and seed, (n, 3, 256, 256) in -1..1."""
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        images = pipe(
            prompts,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=generators,
            output_type="pt",
        ).images
        return (2 * images - 1).float().cpu()


def measure_autoencoder(context: Context) -> dict[str, float]:
    """PSNR in dB of reconstructed fresh drawings, averaged over pictures."""
    vae = context.pipeline().vae
    psnr = []
    for start in tqdm(range(0, context.count, context.batch), desc="autoencoder", unit="batch"):
        drawn = np.stack([picture_of("fresh", start + i)[0] for i in range(context.batch)])
        pixels = to_pixels(drawn).to(context.device)
        with torch.inference_mode():
            decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
        psnr += (-10 * torch.log10((decoded - pixels).square().mean((1, 2, 3)) / 4)).tolist()
    return {"psnr_db": float(np.mean(psnr)), "psnr_db_worst": float(np.min(psnr))}


def measure_readers(context: Context) -> dict[str, float]:
    """Balanced accuracy on fresh drawings: recall averaged over an attribute's values, then over all."""
    result = {}
    drawn = [
        picture_of("fresh", 100_000 + i) for i in tqdm(range(4 * context.count), desc="readers: drawing")
    ]
    truth = np.stack([scene.labels() for _, scene in drawn])
    for name in [name for name in READERS if (context.model / "readers" / name).exists()]:
        reader = READERS[name].from_pretrained(context.model / "readers" / name).eval().to(context.device)
        read = []
        for start in range(0, len(drawn), context.batch):
            pixels = to_pixels(np.stack([p for p, _ in drawn[start : start + context.batch]]))
            rows = reader.read(pixels.to(context.device))
            read += [Scene(**row).labels() for row in rows]
        right = np.stack(read) == truth
        recalls = {
            attribute: np.mean([right[truth[:, c] == v, c].mean() for v in np.unique(truth[:, c])])
            for c, attribute in enumerate(ATTRIBUTES)
        }
        result[f"{name}_balanced_accuracy"] = float(np.mean(list(recalls.values())))
        worst = min(recalls, key=lambda a: recalls[a])
        result[f"{name}_worst_{worst}"] = float(recalls[worst])
    return result


def measure_faithfulness(context: Context) -> dict[str, float]:
    """Share of the attributes named by fresh captions that the judge finds in the generated picture."""
    pipe = context.pipeline()
    judge = READERS["judge"].from_pretrained(context.model / "readers" / "judge").eval()
    right: dict[str, list[bool]] = {attribute: [] for attribute in ATTRIBUTES}
    drawn_right = []
    for start in tqdm(range(0, context.count, context.batch), desc="faithfulness", unit="batch"):
        named, prompts, drawn = [], [], []
        for i in range(start, min(start + context.batch, context.count)):
            scene, rng = scene_of("fresh", 200_000 + i)
            words, said = caption(scene, rng)
            prompts.append(words)
            named.append(said)
            drawn.append(draw(scene, rng))
        painted = context.paint(pipe, prompts, list(range(start, start + len(prompts))))
        for said, seen, seen_drawn in zip(
            named, judge.read(painted), judge.read(to_pixels(np.stack(drawn))), strict=True
        ):
            for attribute, value in said.items():
                right[attribute].append(seen[attribute] == value)
                drawn_right.append(seen_drawn[attribute] == value)
    result = {
        "faithfulness": float(np.mean([r for rows in right.values() for r in rows])),
        "faithfulness_of_drawings": float(np.mean(drawn_right)),
    }
    return result | {f"faithful_{a}": float(np.mean(rows)) for a, rows in right.items() if rows}


def _mean_pairwise_distance(pictures: Tensor) -> float:
    thumbs = torch.nn.functional.interpolate(pictures, (THUMBNAIL, THUMBNAIL), mode="area").flatten(1)
    return float(torch.nn.functional.pdist(thumbs).mean())


def measure_diversity(context: Context) -> dict[str, float]:
    """How much seeds of one prompt differ, beside how much fresh drawings of the same caption differ.

    Both are mean pairwise distances of 16 × 16 thumbnails over groups of eight. The drawings of a caption
    share what it names; what it leaves open is drawn anew for each.
    """
    pipe = context.pipeline()
    painted, drawn = [], []
    for group in tqdm(range(max(4, context.count // 20)), desc="diversity", unit="prompt"):
        scene, rng = scene_of("fresh", 300_000 + group)
        words, said = caption(scene, rng)
        painted.append(_mean_pairwise_distance(context.paint(pipe, [words] * 8, list(range(8)))))
        matching: list[np.ndarray] = []
        index = 0
        while len(matching) < 8 and index < 4000:
            other, other_rng = scene_of("fresh", 400_000 + 4000 * group + index)
            index += 1
            if all(getattr(other, a) == v for a, v in said.items()):
                matching.append(draw(other, other_rng))
        while len(matching) < 8:  # too rare a combination to meet by chance: the scene itself, laid out anew
            matching.append(draw(scene, rng))
        drawn.append(_mean_pairwise_distance(to_pixels(np.stack(matching))))
    return {
        "diversity_ratio": float(np.mean(painted) / np.mean(drawn)),
        "distance_of_seeds": float(np.mean(painted)),
    }


PROMPTS = (
    "snowy mountains at sunset with a lake and a cabin",
    "a volcano at night with an aurora and stars",
    "green hills by day with a windmill, flowers and a path",
    "palm trees on a beach, sailboat, sunset",
    "desert dunes with cacti under a clear sky",
    "cherry blossoms by a river at dawn, mist",
    "autumn forest with a castle in the rain",
    "red mesas at dusk with a crescent moon and a tent",
    "a lighthouse on the coast at night with a full moon",
    "winter, fir trees, falling snow, cabin",
    "hot air balloon over rolling hills in the morning",
    "a thunderstorm over a plain with lightning",
)
"""What the sample sheet shows, two seeds each."""


def paint_sheet(context: Context, path: Path) -> dict[str, float]:
    """A sheet of generated pictures, four prompts to a row, two seeds below each other; gives its seconds."""
    pipe = context.pipeline()
    started = time.monotonic()
    tiles = []
    for prompt in tqdm(PROMPTS, desc="sheet", unit="prompt"):
        pair = context.paint(pipe, [prompt] * 2, [0, 1]).clamp(-1, 1)
        tiles.append(np.concatenate(list((127.5 * (pair + 1)).round().byte().permute(0, 2, 3, 1).numpy())))
    rows = [np.concatenate(tiles[i : i + 4], axis=1) for i in range(0, len(tiles), 4)]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(path, optimize=True)
    return {"seconds": time.monotonic() - started}


MEASURES: dict[str, Callable[[Context], dict[str, float]]] = {
    "autoencoder": measure_autoencoder,
    "readers": measure_readers,
    "faithfulness": measure_faithfulness,
    "diversity": measure_diversity,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("checkpoints/landscapes"))
    parser.add_argument("--only", nargs="+", choices=[*MEASURES, "sheet"], default=[*MEASURES, "sheet"])
    parser.add_argument("--count", type=int, default=500, help="fresh captions and drawings")
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto")
    parser.add_argument("--sheet", type=Path, default=Path("checkpoints/landscapes/samples.png"))
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    context = Context(args.model, pick_device(args.device), args.count, args.batch)
    figures: dict[str, dict[str, float]] = {"settings": {"count": args.count}}
    for name in args.only:
        figures[name] = MEASURES[name](context) if name in MEASURES else paint_sheet(context, args.sheet)
        for key, value in figures[name].items():
            print(f"{name:14} {key:32} {value:.4f}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
