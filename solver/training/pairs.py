"""Make and load pairs: prompts, seeds and their full-step latents, the targets of training and evaluation.

`python -m solver pairs --prompts FILE --out DIR` makes pairs with a model in the diffusers layout;
`accelerate launch -m solver pairs …` makes them on several GPUs. An interrupted run continues when it is
started again with the same options. By default, the full-step latents are those of the app's refinement.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from solver.diffusion import LatentDiffusion, load_diffusion
from solver.plan import Plan
from solver.sampling import sample
from solver.schedule import NoiseSchedule
from solver.solvers import SOLVERS, make_plan

SETTINGS_FILE = "pairs.json"


@dataclass(frozen=True)
class Prompt:
    """A prompt of a pair.

    Attributes:
        prompt: the text.
        attributes: attributes of the scene that the text names, if known: name → value.
        image: file of the picture to edit, for an editing model.
    """

    prompt: str
    attributes: dict[str, str] = field(default_factory=dict)
    image: str = ""


@dataclass(frozen=True)
class Target:
    """Solver, steps and grid of the full-step pictures; the defaults are the app's refinement.

    Attributes:
        to_zero: whether they end at σ = 0 or at the schedule's lowest level.
    """

    solver: str = "dpm++2m"
    steps: int = 40
    grid: str = "trailing"
    to_zero: bool = True

    def plan(self, schedule: NoiseSchedule) -> Plan:
        """Return the plan that makes the full-step pictures on a schedule."""
        return make_plan(self.solver, self.steps, schedule, grid=self.grid, to_zero=self.to_zero)


REFINEMENT = Target()


@dataclass(frozen=True, eq=False)
class Pairs:
    """n pairs, on the CPU in float32.

    Attributes:
        prompts, seeds: n each.
        guidance: guidance scales [n].
        latents: full-step latents [n, C, H, W].
        target: how the latents were made.
        model: fingerprint of the model that made them.
        reference: latents [n, C, H, W] of the edited pictures, for an editing model.
    """

    prompts: Sequence[Prompt]
    seeds: Sequence[int]
    guidance: Tensor
    latents: Tensor
    target: Target
    model: str
    reference: Tensor | None = None

    def __len__(self) -> int:
        return len(self.seeds)

    def take(self, which: Sequence[int]) -> Pairs:
        """Return the pairs at these indices, in this order; indices may repeat."""
        index = torch.as_tensor(which)
        return Pairs(
            [self.prompts[i] for i in which],
            [self.seeds[i] for i in which],
            self.guidance[index],
            self.latents[index],
            self.target,
            self.model,
            None if self.reference is None else self.reference[index],
        )


def read_prompts(path: Path) -> list[Prompt]:
    """Read prompts from a text file, one a line, or from JSON lines (`.jsonl`).

    A JSON object has "prompt" and optionally "attributes" and "image", a path relative to the file.

    Raises:
        ValueError: a malformed line, or a file without prompts.
    """
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            prompts.append(Prompt(line.strip()))
            continue
        try:
            entry = json.loads(line)
            image = str(path.parent / entry["image"]) if entry.get("image") else ""
            prompts.append(Prompt(str(entry["prompt"]), dict(entry.get("attributes", {})), image))
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f'{path}, line {number}: expected {{"prompt": "…"}}, optionally with "attributes" or "image".'
            ) from None
    if not prompts:
        raise ValueError(f"{path} contains no prompts; write one on each line.")
    return prompts


def make_pairs(
    model: LatentDiffusion,
    prompts: Sequence[Prompt],
    out: Path,
    *,
    count: int,
    guidance: Sequence[float] = (3.0,),
    first_seed: int = 0,
    target: Target = REFINEMENT,
    batch: int = 16,
    process: int = 0,
    processes: int = 1,
) -> None:
    """Make the missing shards of pairs 0 … count - 1 in the folder `out`.

    Args:
        prompts: pair i has prompt i modulo their number.
        count: number of pairs.
        guidance: scales; pair i has scale i modulo their number.
        first_seed: pair i has the seed first_seed + i.
        batch: pairs in a shard and in a network call.
        process, processes: this process makes every `processes`-th shard, from number `process` on.

    Raises:
        ValueError: `out` contains pairs made with other options, a number is out of range, or an image is
            missing, unreadable, or given to a model that does not edit.
    """
    if count < 1 or batch < 1:
        raise ValueError(f"--count and --batch must be at least 1, not {count} and {batch}.")
    if not guidance or min(guidance) < 1:
        raise ValueError(f"Guidance scales must be at least 1, not {list(guidance)}.")
    plan = target.plan(model.schedule)
    settings: dict[str, Any] = {
        "count": count,
        "batch": batch,
        "model": model.fingerprint,
        # Without the default: pairs.json files older than this field must still compare equal.
        "target": {name: v for name, v in asdict(target).items() if (name, v) != ("to_zero", True)},
        "seeds": [first_seed + i for i in range(count)],
        "guidance": [float(guidance[i % len(guidance)]) for i in range(count)],
        "prompts": [_as_json(prompts[i % len(prompts)]) for i in range(count)],
    }
    _check_images(model, prompts)
    out.mkdir(parents=True, exist_ok=True)
    if (out / SETTINGS_FILE).exists() and json.loads((out / SETTINGS_FILE).read_text()) != settings:
        raise ValueError(f"{out} contains pairs made with other options; choose another folder or delete it.")
    draft = out / f"{SETTINGS_FILE}.{process}"  # one for each process
    draft.write_text(json.dumps(settings), encoding="utf-8")
    os.replace(draft, out / SETTINGS_FILE)
    shards = range(0, count, batch)[process::processes]
    with tqdm(total=sum(min(batch, count - i) for i in shards), unit="pair", disable=process > 0) as bar:
        for start in shards:
            which = range(start, min(start + batch, count))
            path = _shard(out, start)
            if not path.exists():
                part = [prompts[i % len(prompts)] for i in which]
                scales = torch.tensor([settings["guidance"][i] for i in which])
                tensors = {}
                if part[0].image:
                    tensors["reference"] = encode_images(model, [prompt.image for prompt in part])
                denoise = model.denoiser([p.prompt for p in part], scales, tensors.get("reference"))
                tensors["latents"] = sample(plan, denoise, model.noise([settings["seeds"][i] for i in which]))
                tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
                save_file(tensors, path.with_suffix(".new"))
                os.replace(path.with_suffix(".new"), path)
            bar.update(len(which))


def encode_images(model: LatentDiffusion, files: Sequence[str]) -> Tensor:
    """Encode the pictures in these files, cropped at the centre and scaled, as latents [n, C, H, W].

    Raises:
        ValueError: a file that is missing or not a picture.
    """
    _, height, width = model.latent_shape
    pictures = []
    for file in files:
        try:
            with Image.open(file) as opened:
                picture = ImageOps.exif_transpose(opened).convert("RGB")
        except OSError as error:
            raise ValueError(f"Cannot read {file} as a picture: {error}.") from error
        fitted = ImageOps.fit(picture, (width * model.scale, height * model.scale), Image.Resampling.LANCZOS)
        pictures.append(torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255)
    return model.encode_pictures(torch.stack(pictures))


def _check_images(model: LatentDiffusion, prompts: Sequence[Prompt]) -> None:
    images = [prompt.image for prompt in prompts if prompt.image]
    if images and not model.edits:
        raise ValueError(
            f'This model does not edit pictures: remove "image" ({images[0]}), or choose an editing model.'
        )
    if images and len(images) < len(prompts):
        raise ValueError(
            f"{len(prompts) - len(images)} of {len(prompts)} prompts have no image: give one to all or none."
        )
    if missing := [image for image in images if not Path(image).is_file()]:
        raise ValueError(f"{len(missing)} of {len(images)} images are missing; the first is {missing[0]}.")


def _as_json(prompt: Prompt) -> dict[str, Any]:
    # Without an empty image: pairs.json files older than this field must still compare equal.
    return {name: value for name, value in asdict(prompt).items() if name != "image" or value}


def load_pairs(folder: Path) -> Pairs:
    """Load the pairs that `make_pairs` wrote into a folder.

    Raises:
        FileNotFoundError: the folder has no pairs, or shards are missing.
    """
    if not (folder / SETTINGS_FILE).exists():
        raise FileNotFoundError(f"There are no pairs in {folder}; make them with `python -m solver pairs`.")
    settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    shards = [_shard(folder, start) for start in range(0, settings["count"], settings["batch"])]
    if missing := sum(not shard.exists() for shard in shards):
        raise FileNotFoundError(
            f"{missing} of {len(shards)} shards are missing in {folder}; run `python -m solver pairs` again "
            "with the same options to make them."
        )
    loaded = [load_file(shard) for shard in shards]
    return Pairs(
        [Prompt(**entry) for entry in settings["prompts"]],
        settings["seeds"],
        torch.tensor(settings["guidance"]),
        torch.cat([shard["latents"] for shard in loaded]),
        Target(**settings["target"]),
        settings["model"],
        torch.cat([shard["reference"] for shard in loaded]) if "reference" in loaded[0] else None,
    )


def _shard(folder: Path, start: int) -> Path:
    return folder / f"pairs-{start:06d}.safetensors"


def main() -> None:
    from accelerate import PartialState

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="checkpoints/landscapes", help="folder or hub id (%(default)s)")
    parser.add_argument(
        "--prompts",
        type=Path,
        required=True,
        help="text file with a prompt on each line, or .jsonl, optionally with images to edit",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the pairs")
    parser.add_argument("--count", type=int, default=256, help="number of pairs (%(default)s)")
    parser.add_argument("--guidance", type=float, nargs="+", default=[3.0], help="scales taken in turn (3)")
    parser.add_argument("--first-seed", type=int, default=0, help="pair i has this seed + i (%(default)s)")
    parser.add_argument(
        "--solver", choices=SOLVERS, default=Target.solver, help="of the targets (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=Target.steps, help="of the targets (%(default)s)")
    parser.add_argument("--grid", default=Target.grid, help="of the targets (%(default)s)")
    parser.add_argument(
        "--lowest-sigma", action="store_true", help="end the targets at the lowest noise level, not at zero"
    )
    parser.add_argument("--batch", type=int, default=16, help="pairs in a network call (%(default)s)")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    args = parser.parse_args()
    state = PartialState(cpu=args.cpu or not torch.cuda.is_available())
    try:
        make_pairs(
            load_diffusion(args.model, state.device),
            read_prompts(args.prompts),
            args.out,
            count=args.count,
            guidance=args.guidance,
            first_seed=args.first_seed,
            target=Target(args.solver, args.steps, args.grid, not args.lowest_sigma),
            batch=args.batch,
            process=state.process_index,
            processes=state.num_processes,
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))
    state.wait_for_everyone()
