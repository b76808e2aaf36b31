"""What a solver is trained towards and judged by: prompts, seeds, and the full-step result from each.

`python -m solver.pairs --prompts FILE --out DIR` makes a set for a model in the diffusers layout, on a CPU,
on a GPU, or, started by `accelerate launch -m solver.pairs …`, on several. It can be cut off at any moment
and started again. The full-step result is what the app's refinement makes of the same noise.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from solver.diffusion import LatentDiffusion, load_diffusion
from solver.sampling import sample
from solver.solvers import SOLVERS, make_plan

SETTINGS_FILE = "pairs.json"


@dataclass(frozen=True)
class Prompt:
    """What was asked for, and the attributes of a scene that it names, where somebody wrote them down."""

    prompt: str
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """How the full-step results are made; the defaults are the app's refinement."""

    solver: str = "dpm++2m"
    steps: int = 40
    grid: str = "trailing"


REFINEMENT = Target()


@dataclass(frozen=True, eq=False)
class Pairs:
    """n prompts, seeds, guidance scales [n], and full-step latents [n, C, H, W], float32 on the CPU.

    `model` is the fingerprint of the model that made them.
    """

    prompts: Sequence[Prompt]
    seeds: Sequence[int]
    guidance: Tensor
    latents: Tensor
    target: Target
    model: str

    def __len__(self) -> int:
        return len(self.seeds)

    def take(self, which: Sequence[int]) -> Pairs:
        """The pairs of these numbers, in this order, repeated where a number is."""
        index = torch.as_tensor(which)
        return Pairs(
            [self.prompts[i] for i in which],
            [self.seeds[i] for i in which],
            self.guidance[index],
            self.latents[index],
            self.target,
            self.model,
        )


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts from a file: one a line, or (`.jsonl`) objects with "prompt" and perhaps "attributes".

    Raises:
        ValueError: a line that is neither, or no prompts at all; says which line.
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
            prompts.append(Prompt(str(entry["prompt"]), dict(entry.get("attributes", {}))))
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f'{path}, line {number}: expected {{"prompt": "…"}}, perhaps with "attributes".'
            ) from None
    if not prompts:
        raise ValueError(f"{path} holds no prompts; write one on each line.")
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
    """Make pairs 0 … count - 1 in the folder `out`, a shard of `batch` at a time, leaving what is there.

    Pair i has prompt i modulo their number, seed first_seed + i and the guidance scale i modulo their number.
    Several processes may share the work: each makes every `processes`-th shard.

    Raises:
        ValueError: `out` holds pairs that were made otherwise, or numbers out of range.
    """
    if count < 1 or batch < 1:
        raise ValueError(
            f"There must be one pair at least, and one at a time: not {count}, {batch} at a time."
        )
    if not guidance or min(guidance) < 1:
        raise ValueError(f"Guidance scales are 1 or more, not {list(guidance)}.")
    plan = make_plan(target.solver, target.steps, model.schedule, grid=target.grid)
    settings: dict[str, Any] = {
        "count": count,
        "batch": batch,
        "model": model.fingerprint,
        "target": asdict(target),
        "seeds": [first_seed + i for i in range(count)],
        "guidance": [float(guidance[i % len(guidance)]) for i in range(count)],
        "prompts": [asdict(prompts[i % len(prompts)]) for i in range(count)],
    }
    out.mkdir(parents=True, exist_ok=True)
    if (out / SETTINGS_FILE).exists() and json.loads((out / SETTINGS_FILE).read_text()) != settings:
        raise ValueError(f"{out} holds pairs that were made otherwise; choose another folder or delete it.")
    _write(out / SETTINGS_FILE, json.dumps(settings))
    shards = range(0, count, batch)[process::processes]
    with tqdm(total=sum(min(batch, count - i) for i in shards), unit="pair", disable=process > 0) as bar:
        for start in shards:
            which = range(start, min(start + batch, count))
            path = _shard(out, start)
            if not path.exists():
                denoise = model.denoiser(
                    [settings["prompts"][i]["prompt"] for i in which],
                    torch.tensor([settings["guidance"][i] for i in which]),
                )
                latents = sample(plan, denoise, model.noise([settings["seeds"][i] for i in which]))
                save_file({"latents": latents.cpu().contiguous()}, path.with_suffix(".new"))
                os.replace(path.with_suffix(".new"), path)
            bar.update(len(which))


def load_pairs(folder: Path) -> Pairs:
    """The pairs that `make_pairs` made.

    Raises:
        FileNotFoundError: there are none, or not all of them yet.
    """
    if not (folder / SETTINGS_FILE).exists():
        raise FileNotFoundError(f"There are no pairs in {folder}; make them with `python -m solver.pairs`.")
    settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    shards = [_shard(folder, start) for start in range(0, settings["count"], settings["batch"])]
    if missing := sum(not shard.exists() for shard in shards):
        raise FileNotFoundError(
            f"{missing} of {len(shards)} shards are missing in {folder}; run `python -m solver.pairs` again "
            "with the same options to make the rest."
        )
    return Pairs(
        [Prompt(**entry) for entry in settings["prompts"]],
        settings["seeds"],
        torch.tensor(settings["guidance"]),
        torch.cat([load_file(shard)["latents"] for shard in shards]),
        Target(**settings["target"]),
        settings["model"],
    )


def _shard(folder: Path, start: int) -> Path:
    return folder / f"pairs-{start:06d}.safetensors"


def _write(path: Path, text: str) -> None:
    path.with_suffix(f".{os.getpid()}").write_text(text, encoding="utf-8")
    os.replace(path.with_suffix(f".{os.getpid()}"), path)


def main() -> None:
    from accelerate import PartialState

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="checkpoints/landscapes", help="folder or hub id (%(default)s)")
    parser.add_argument(
        "--prompts", type=Path, required=True, help="text file with a prompt on each line, or .jsonl"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the pairs")
    parser.add_argument("--count", type=int, default=256, help="how many (%(default)s)")
    parser.add_argument("--guidance", type=float, nargs="+", default=[3.0], help="scales taken in turn (3)")
    parser.add_argument("--first-seed", type=int, default=0, help="pair i has this seed + i (%(default)s)")
    parser.add_argument("--solver", choices=SOLVERS, default=Target.solver, help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=Target.steps, help="of the full result (%(default)s)")
    parser.add_argument("--grid", default=Target.grid, help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="pairs made at once (%(default)s)")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU that is there")
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
            target=Target(args.solver, args.steps, args.grid),
            batch=args.batch,
            process=state.process_index,
            processes=state.num_processes,
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))
    state.wait_for_everyone()


if __name__ == "__main__":
    main()
