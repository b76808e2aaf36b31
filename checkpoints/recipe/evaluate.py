"""Measure the embedded model: `python -m checkpoints.recipe.evaluate`.

Everything is held against drawings and captions that no training has seen (the `fresh` split), with 40 steps
of DPM-Solver++(2M) at guidance scale 3 through the stock pipeline. Each part can be run alone with --only;
`kernel`, `detector` and `finals` only run when named.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

import checkpoints
from checkpoints.readers import READERS, ConvSceneReader
from checkpoints.recipe.captions import caption
from checkpoints.recipe.data import picture_of, psnr_db, scene_of, to_pixels
from checkpoints.recipe.drawing import draw
from checkpoints.recipe.fit import pick_device
from checkpoints.recipe.realism import detect, features, kernel_distance
from checkpoints.recipe.scenes import ATTRIBUTES, Scene
from checkpoints.recipe.train_decoder import denoised_again
from checkpoints.recipe.train_unet import min_snr_weight
from solver.diffusion import load_diffusion

STEPS, PREVIEW_STEPS, GUIDANCE = 40, 6, 3.0
THUMBNAIL = 16


@dataclass
class Context:
    """What every measurement needs.

    Attributes:
        model: folder of the pipeline.
        readers: folder of the readers that judge it.
        unet: folder of another UNet to put into the pipeline.
    """

    model: Path
    device: torch.device
    count: int
    batch: int
    readers: Path
    guidance: float = GUIDANCE
    unet: Path | None = None

    def pipeline(self) -> DiffusionPipeline:
        parts = {"unet": UNet2DConditionModel.from_pretrained(self.unet)} if self.unet else {}
        pipe = DiffusionPipeline.from_pretrained(self.model, **parts).to(self.device)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def reader(self, name: str) -> Any:
        return READERS[name].from_pretrained(self.readers / name).eval().to(self.device)

    def paint(
        self, pipe: DiffusionPipeline, prompts: list[str], seeds: list[int], steps: int | None = None
    ) -> Tensor:
        """One picture per prompt and seed, (n, 3, 256, 256) in -1..1."""
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        images = pipe(
            prompts,
            num_inference_steps=steps or STEPS,
            guidance_scale=self.guidance,
            generator=generators,
            output_type="pt",
        ).images
        return (2 * images - 1).float().cpu()

    def given_back(self, pipe: DiffusionPipeline, drawn: np.ndarray) -> Tensor:
        """Drawings (n, 256, 256, 3) uint8 through the autoencoder, (n, 3, 256, 256) in -1..1."""
        pixels = to_pixels(drawn).to(self.device)
        with torch.inference_mode():
            return pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)

    @cached_property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """`count` drawings of fresh scenes given back, and as many finals of other fresh captions."""
        pipe = self.pipeline()
        drawn, painted = [], []
        for start in tqdm(range(0, self.count, self.batch), desc="drawings and finals", unit="batch"):
            rows = range(start, min(start + self.batch, self.count))
            drawn.append(self.given_back(pipe, np.stack([picture_of("fresh", 500_000 + i)[0] for i in rows])))
            words = [caption(*scene_of("fresh", 600_000 + i))[0] for i in rows]
            painted.append(self.paint(pipe, words, list(rows)).clamp(-1, 1))
        return torch.cat(drawn), torch.cat(painted).to(self.device)


def measure_autoencoder(context: Context) -> dict[str, float]:
    """PSNR in dB of reconstructed fresh drawings, averaged over pictures."""
    pipe = context.pipeline()
    psnr = []
    for start in tqdm(range(0, context.count, context.batch), desc="autoencoder", unit="batch"):
        drawn = np.stack([picture_of("fresh", start + i)[0] for i in range(context.batch)])
        psnr += psnr_db(context.given_back(pipe, drawn), to_pixels(drawn).to(context.device)).tolist()
    return {"psnr_db": float(np.mean(psnr)), "psnr_db_worst": float(np.min(psnr))}


@torch.inference_mode()
def measure_decoder(context: Context) -> dict[str, float]:
    """PSNR in dB of fresh drawings whose latents the UNet has touched, and how sharp they are.

    Latents are noised and denoised, a third of the way; sharpness is the mean difference of neighbouring
    pixels relative to that of the drawings.
    """
    model = load_diffusion(context.model, context.device)
    psnr, sharpness = [], []
    for start in tqdm(range(0, context.count, context.batch), desc="decoder", unit="batch"):
        rows = list(range(800_000 + start, 800_000 + min(start + context.batch, context.count)))
        scenes = [scene_of("fresh", i) for i in rows]
        words = [caption(*scene)[0] for scene in scenes]
        drawn = (to_pixels(np.stack([picture_of("fresh", i)[0] for i in rows])).to(context.device) + 1) / 2
        latents = denoised_again(model, model.encode_pictures(drawn), words, rows, strength=0.35)
        decoded = model.decode(latents).clamp(0, 1)
        psnr += psnr_db(decoded, drawn, span=1).tolist()
        edges = [x.diff(dim=-1).abs().mean((1, 2, 3)) for x in (decoded, drawn)]
        sharpness += (edges[0] / edges[1]).tolist()
    return {"denoised_psnr_db": float(np.mean(psnr)), "denoised_sharpness": float(np.mean(sharpness))}


def measure_readers(context: Context) -> dict[str, float]:
    """Balanced accuracy on fresh drawings: recall averaged over an attribute's values, then over all."""
    result = {}
    drawn = [
        picture_of("fresh", 100_000 + i) for i in tqdm(range(4 * context.count), desc="readers: drawing")
    ]
    truth = np.stack([scene.labels() for _, scene in drawn])
    for name in [name for name in READERS if (context.readers / name).exists()]:
        reader = context.reader(name)
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
    judge = context.reader("judge").cpu()
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


@torch.inference_mode()
def measure_denoising(context: Context) -> dict[str, float]:
    """Min-SNR weighted error of the predicted noise on fresh drawings, and the plain error by timestep.

    Noise and timesteps are a function of the drawing's index, so that networks can be compared pairwise.
    """
    pipe = context.pipeline()
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    weights = min_snr_weight(scheduler.alphas_cumprod)
    timesteps = torch.arange(50, 1000, 100)
    errors = []
    for index in tqdm(range(context.count), desc="denoising", unit="drawing"):
        scene, rng = scene_of("fresh", 700_000 + index)
        pixels = to_pixels(draw(scene, rng)[None]).to(context.device)
        latents = pipe.vae.encode(pixels).latent_dist.mode().expand(len(timesteps), -1, -1, -1)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(index)).to(context.device)
        states = pipe.encode_prompt(caption(scene, rng)[0], context.device, len(timesteps), False)[0]
        noisy = scheduler.add_noise(latents, noise, timesteps.to(context.device))
        predicted = pipe.unet(noisy, timesteps.to(context.device), states).sample
        errors.append((predicted - noise).square().mean((1, 2, 3)).cpu())
    table = torch.stack(errors)
    weighted = (table * weights[timesteps]).mean(1)
    by_time = {f"error_at_{t}": e for t, e in zip(timesteps.tolist(), table.mean(0).tolist(), strict=True)}
    spread = 1.96 * weighted.std().item() / len(weighted) ** 0.5
    return {"weighted_error": weighted.mean().item(), "weighted_error_interval": spread, **by_time}


def measure_kernel(context: Context) -> dict[str, float]:
    """Kernel distance between finals and drawings given back, on the features of both readers."""
    drawings, finals = context.pairs
    result: dict[str, float] = {}
    for name in READERS:
        reader = context.reader(name)
        distance, interval = kernel_distance(features(reader, drawings), features(reader, finals))
        result |= {f"kernel_distance_{name}": distance, f"kernel_distance_{name}_interval": interval}
    return result


def measure_detector(context: Context) -> dict[str, float]:
    """Accuracy of a small network that was taught to tell finals from drawings given back."""
    reader = context.reader("reward")
    assert isinstance(reader, ConvSceneReader)
    accuracy, interval = detect(reader, *context.pairs)
    return {"detector_accuracy": accuracy, "detector_accuracy_interval": interval}


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


FINALS, COLUMNS = 48, 6


def paint_finals(context: Context, path: Path) -> dict[str, float]:
    """A sheet to judge by eye: finals of the first 48 test prompts, each beside its 6-step preview.

    Seed i belongs to prompt i, so that sheets of two models can be held against each other.
    """
    pipe = context.pipeline()
    rows = (Path(checkpoints.__file__).parent / "landscapes" / "prompts" / "test.jsonl").read_text()
    words = [json.loads(row)["prompt"] for row in rows.splitlines()[:FINALS]]
    side, margin = 256, 16
    sheet = Image.new("RGB", (COLUMNS * 2 * side, -(-FINALS // COLUMNS) * (side + margin)), "white")
    pen = ImageDraw.Draw(sheet)
    for start in tqdm(range(0, FINALS, COLUMNS), desc="finals", unit="row"):
        seeds = list(range(start, min(start + COLUMNS, FINALS)))
        prompts = [words[i] for i in seeds]
        top = start // COLUMNS * (side + margin)
        for offset, steps in enumerate((STEPS, PREVIEW_STEPS)):
            painted = context.paint(pipe, prompts, seeds, steps).clamp(-1, 1)
            for column, pixels in enumerate((127.5 * (painted + 1)).round().byte().permute(0, 2, 3, 1)):
                sheet.paste(Image.fromarray(pixels.numpy()), (side * (2 * column + offset), top))
        for column, i in enumerate(seeds):
            pen.text((2 * side * column + 4, top + side + 2), f"{i}: {words[i]}"[:84], "black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
    return {"finals": FINALS}


MEASURES: dict[str, Callable[[Context], dict[str, float]]] = {
    "autoencoder": measure_autoencoder,
    "decoder": measure_decoder,
    "readers": measure_readers,
    "faithfulness": measure_faithfulness,
    "diversity": measure_diversity,
    "denoising": measure_denoising,
    "kernel": measure_kernel,
    "detector": measure_detector,
}
SHEETS = {"sheet": paint_sheet, "finals": paint_finals}
DEFAULT = ("autoencoder", "readers", "faithfulness", "diversity", "sheet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("checkpoints/landscapes"))
    parser.add_argument("--unet", type=Path, help="put this UNet into the model")
    parser.add_argument("--readers", type=Path, help="judge by these readers (default: those of the model)")
    parser.add_argument("--only", nargs="+", choices=[*MEASURES, *SHEETS], default=DEFAULT)
    parser.add_argument("--count", type=int, default=500, help="fresh captions and drawings (%(default)s)")
    parser.add_argument("--guidance", type=float, default=GUIDANCE, help="guidance scale (%(default)s)")
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto")
    parser.add_argument(
        "--sheet", type=Path, default=Path("checkpoints/landscapes/samples.png"), help="file of `sheet`"
    )
    parser.add_argument("--finals", type=Path, default=Path("build/finals.png"), help="file of `finals`")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    context = Context(
        args.model,
        pick_device(args.device),
        args.count,
        args.batch,
        args.readers or args.model / "readers",
        args.guidance,
        args.unet,
    )
    figures: dict[str, dict[str, float]] = {
        "settings": {"count": args.count, "guidance_scale": args.guidance}
    }
    files = {"sheet": args.sheet, "finals": args.finals}
    for name in args.only:
        figures[name] = MEASURES[name](context) if name in MEASURES else SHEETS[name](context, files[name])
        for key, value in figures[name].items():
            print(f"{name:14} {key:32} {value:.4f}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
