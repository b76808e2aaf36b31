"""Learn a solver for a model in one command: `python -m solver learn --model FOLDER_OR_ID`.

Makes pairs, fits a table to them, compares it with classical solvers, and writes a card with plots. At the
end it can put the solver beside the model. It says first how long that takes, and chooses the number of pairs
so that it fits into `--minutes`. Interrupt it at any moment: the same command continues.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from solver.consistency import CONFIG_FILE, POLICY_FILE
from solver.diffusion import LatentDiffusion, load_diffusion
from solver.evaluation import evaluate, report
from solver.evaluation.summary import BASELINE
from solver.table_policy import TablePolicy
from solver.training import train
from solver.training.fit import SHIFTS, STAGES, TILTS, network_calls
from solver.training.pairs import REFINEMENT, Prompt, make_pairs, read_prompts

RIVALS = ("dpm++2m", "unipc")
ORDER = 4
SPARE = 1.25
"""What everything but the network takes, as a factor on its time."""

# Subjects, places and looks of the built-in prompts. Their numbers have no common divisor.
SUBJECTS = (
    "a fox", "an old fisherman", "a lighthouse", "a bowl of cherries", "a red bicycle", "a cathedral",
    "a sailing boat", "a dancer", "a steam locomotive", "a wolf", "a market stall", "a child with a kite",
    "a glass of water", "a stone bridge", "an astronaut", "a cat", "a wooden cabin", "a vase of tulips",
    "a violinist", "a waterfall", "a castle", "a parrot", "a street musician",
)  # fmt: skip
PLACES = (
    "in a snowy forest", "on a cliff above the sea", "in a narrow alley", "in a meadow",
    "under a starry sky", "in a desert", "beside a calm lake", "in a crowded city", "on a kitchen table",
    "in the mountains",
)  # fmt: skip
LOOKS = (
    "at dusk", "oil painting", "photograph, 50 mm", "watercolour", "in thick fog",
    "in bright morning light", "pencil sketch", "in the rain", "children's book illustration",
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """Numbers of pairs: to fit to, to accept by, and to measure on."""

    training: int
    validation: int
    test: int


SIZES = (Size(16, 8, 8), Size(32, 12, 16), Size(64, 16, 32), Size(128, 24, 64), Size(256, 48, 128))


def built_in_prompts() -> Iterator[str]:
    """Yield different prompts, for models of pictures of any kind."""
    for i in range(math.lcm(len(SUBJECTS), len(PLACES), len(LOOKS))):
        yield f"{SUBJECTS[i % len(SUBJECTS)]} {PLACES[i % len(PLACES)]}, {LOOKS[i % len(LOOKS)]}"


def split_prompts(prompts: Sequence[Prompt], size: Size) -> dict[str, list[Prompt]]:
    """Split prompts into those to fit to, to accept by and to measure on; none is in two of them.

    Raises:
        ValueError: too few.
    """
    test = max(size.test // evaluate.SEEDS_PER_PROMPT, 2)
    if len(prompts) < test + 4:
        raise ValueError(f"Give at least {test + 4} different prompts, not {len(prompts)}.")
    rest = len(prompts) - test
    accept = min(size.validation, rest // 4)
    parts = prompts[:test], prompts[test : test + accept], prompts[test + accept :]
    return dict(zip(("test", "validation", "train"), map(list, parts), strict=True))


def evaluations(size: Size, counts: Sequence[int]) -> dict[str, int]:
    """Return how often the network is evaluated for one picture, by part of the work."""
    policy = TablePolicy(ORDER, counts=counts)
    full, each = REFINEMENT.steps, sum(counts)
    chosen_on = chosen_validation(size)
    made = 2 * size.test + chosen_on
    fitted = sum(
        network_calls(policy, N, stage, size.training, size.validation) for N in counts for stage in STAGES
    )
    start = (len(TILTS) + len(SHIFTS) + 1) * size.validation * min(counts)
    compared = size.test * (len(RIVALS) + 2) + chosen_on * len(RIVALS) * len(evaluate.CANDIDATE_GRIDS)
    return {
        "pairs": (size.training + size.validation) * full,
        "fit": fitted + start,
        "evaluation": made * full + 2 * evaluate.FINER_STEPS + compared * each,
    }


def chosen_validation(size: Size) -> int:
    """Return the number of pairs by which the grids of the rivals are chosen."""
    return min(size.validation, 8)


@torch.no_grad()
def seconds_per_evaluation(model: LatentDiffusion, guidance: Sequence[float], batch: int = 8) -> float:
    """Measure an evaluation of the guided network for one picture in a batch."""
    scales = torch.tensor([guidance[i % len(guidance)] for i in range(batch)])
    times, x = [], model.noise(range(batch))
    denoise = model.denoiser(["a lake"] * batch, scales, x if model.edits else None)
    for i in range(4):
        started = time.monotonic()
        denoise(x, torch.full((batch,), 500.0 - i)).cpu()
        times.append(time.monotonic() - started)
    return min(times[1:]) / batch


def choose_size(counts: Sequence[int], per_evaluation: float, minutes: float) -> Size:
    """Return the largest size whose work fits into the time.

    Raises:
        ValueError: not even the smallest does.
    """
    fitting = [size for size in SIZES if minutes_for(size, counts, per_evaluation) <= minutes]
    if not fitting:
        least = math.ceil(minutes_for(SIZES[0], counts, per_evaluation))
        raise ValueError(
            f"The least takes about {least} minutes here. Give --minutes {least}, fewer --steps, or a "
            "faster --device."
        )
    return fitting[-1]


def minutes_for(size: Size, counts: Sequence[int], per_evaluation: float) -> float:
    """Return an estimate of the minutes of everything."""
    return SPARE * per_evaluation * sum(evaluations(size, counts).values()) / 60


def plan_text(name: str, size: Size, counts: Sequence[int], per_evaluation: float) -> str:
    """Describe the work and its time, before it begins."""
    what = {
        "pairs": f"{size.training} + {size.validation} pictures of {REFINEMENT.steps} steps",
        "fit": f"{', '.join(map(str, counts))} evaluations, by least squares",
        "evaluation": f"{size.test} pictures of unseen prompts, against {' and '.join(RIVALS)}",
    }
    minutes = {k: SPARE * per_evaluation * n / 60 for k, n in evaluations(size, counts).items()}
    lines = [f"  {part:<11}{minutes[part]:7.1f} min  {words}" for part, words in what.items()]
    total = f"About {math.ceil(sum(minutes.values()))} minutes in all."
    end = "Interrupt it at any time; the same command continues."
    return "\n".join([f"Learning a solver for {name}:", *lines, f"{total} {end}"])


def learn(args: argparse.Namespace) -> Path:
    """Do all that is not done yet; return the folder of the solver."""
    settings = {"model": str(args.model), "steps": sorted(set(args.steps)), "guidance": args.guidance}
    settings_file, folder = args.out / "learn.json", args.out / "solver"
    model = load_diffusion(args.model, args.device)
    settings["network"] = model.fingerprint
    if model.guidance_kind == "none":
        settings["guidance"] = [1.0]
    per_evaluation = seconds_per_evaluation(model, settings["guidance"])
    if settings_file.exists():
        known = json.loads(settings_file.read_text(encoding="utf-8"))
        size = Size(**known.pop("size"))
        if known != settings:
            raise ValueError(
                f"{args.out} has a run with other options or another model; choose another --out."
            )
    else:
        size = choose_size(settings["steps"], per_evaluation, args.minutes)
    prompts = split_prompts(_prompts(args), size)
    print(plan_text(Path(args.model).resolve().name, size, settings["steps"], per_evaluation), flush=True)
    (args.out / "prompts").mkdir(parents=True, exist_ok=True)
    settings_file.write_text(json.dumps(settings | {"size": asdict(size)}, indent=1) + "\n", encoding="utf-8")
    for name, part in prompts.items():
        text = "".join(json.dumps(asdict(prompt)) + "\n" for prompt in part)
        (args.out / "prompts" / f"{name}.jsonl").write_text(text, encoding="utf-8")

    scales = settings["guidance"]
    for name, count, seed in (("train", size.training, 0), ("validation", size.validation, 100_000)):
        make_pairs(
            model,
            prompts[name],
            args.out / "pairs" / name,
            count=count,
            guidance=scales,
            first_seed=seed,
            batch=8,
        )
    del model  # the next steps load their own
    steps = list(map(str, settings["steps"]))
    shared = ["--model", str(args.model), "--device", args.device]
    arguments = [*shared, "--method", "fit", "--order", str(ORDER), "--steps", *steps, "--out", str(folder)]
    arguments += [
        "--pairs",
        str(args.out / "pairs/train"),
        "--validation",
        str(args.out / "pairs/validation"),
    ]
    train.run(train.parser().parse_args(arguments))

    middle = sorted(scales)[len(scales) // 2]
    arguments = [*shared, "--nfe", *steps, "--pairs", str(size.test), "--solvers", *RIVALS]
    arguments += ["--learned", f"consistency={folder}", "--guidance", str(middle), "--finer-pairs", "2"]
    arguments += ["--validation-pairs", str(chosen_validation(size)), "--prompts", str(args.out / "prompts")]
    arguments += ["--work", str(args.out / "evaluation"), "--batch", "8"]
    rows = evaluate.evaluate(evaluate.parser().parse_args(arguments))
    model = load_diffusion(args.model, args.device)
    report.draw(rows, folder)
    report.draw_strips(
        model, rows, folder, [p.prompt for p in prompts["test"][:6]], settings["steps"][-1], middle
    )
    report.draw_tables(model, folder, settings["steps"][-1], middle)
    name = Path(args.model).resolve().name
    again = (
        f"python -m solver learn --model {args.model} --steps {' '.join(steps)} --minutes {args.minutes:g}"
    )
    report.ship(report.collect(rows, args.device, model=name, command=again), folder)
    for row in rows:
        if row["solver"] == "consistency":
            print(_verdict(row))
    return folder


def _prompts(args: argparse.Namespace) -> list[Prompt]:
    own = Path(args.model) / "prompts" / "train.jsonl"
    if args.prompts is None and not own.is_file():
        return [Prompt(text) for text in built_in_prompts()]
    found = read_prompts(args.prompts or own)
    return list({prompt.prompt: prompt for prompt in found}.values())


def _verdict(row: dict[str, Any]) -> str:
    low, high = row["lead_psnr_db_ci"]
    return (
        f"{row['nfe']:>3} evaluations: {row['psnr_db']:.2f} dB, {row['lead_psnr_db']:+.2f} "
        f"[{low:+.2f}, {high:+.2f}] over {row['lead_psnr_db_over']}, {row['rows_lead_psnr_db']:+.2f} over "
        f"{BASELINE} rows on the same grid"
    )


def install(folder: Path, model: Path) -> Path:
    """Copy a solver beside its model, where the app finds it; one that is there is renamed.

    Returns:
        The folder of the solver.
    """
    place, draft = model / "solver", model / "solver.new"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    for file in folder.iterdir():
        if file.name in (CONFIG_FILE, POLICY_FILE, train.TRAINING_FILE, "README.md") or file.suffix in (
            ".png",
            ".gz",
        ):
            shutil.copy(file, draft)
    if place.exists():
        place.rename(next(old for n in range(1, 1000) if not (old := model / f"solver.before-{n}").exists()))
    draft.rename(place)
    return place


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", default="checkpoints/landscapes", help="folder or hub id")
    parser.add_argument("--minutes", type=float, default=40, help="how long it may take")
    parser.add_argument("--out", type=Path, help="folder for everything; default: build/learn/NAME")
    parser.add_argument(
        "--prompts", type=Path, help="prompts, one a line; default: the model's, or built-in ones"
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 5, 6, 8], help="numbers of evaluations")
    parser.add_argument(
        "--guidance", type=float, nargs="+", default=[2.0, 3.0, 4.0, 5.0, 7.0], help="scales to learn for"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help=" ")
    parser.add_argument(
        "--install",
        action=argparse.BooleanOptionalAction,
        help="put the solver beside the model, or do not; default: ask",
    )
    return parser


def main() -> None:
    args = parser().parse_args()
    args.out = args.out or Path("build/learn") / Path(args.model).resolve().name
    try:
        folder = learn(args)
        local = Path(args.model).is_dir()
        if args.install is None and local and sys.stdin.isatty():
            args.install = input(f"Put it into {args.model}/solver? [y/N] ").strip().lower() in ("y", "yes")
        if args.install and not local:
            raise ValueError(f"{args.model} is not a folder here; start the app with --solver {folder}.")
        place = install(folder, Path(args.model)) if args.install else folder
    except (OSError, ValueError) as error:
        parser().error(str(error))
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. The same command continues.")
    print(
        f"The solver and its card are in {place}."
        + ("" if args.install else f" The app takes it with --solver {place}.")
    )
