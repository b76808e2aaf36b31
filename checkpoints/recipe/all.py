"""Make the whole model within a budget of minutes: `python -m checkpoints.recipe.all --minutes 10`.

By default the encoder, the text encoder and the tokenizer of the shipped model stay as they are, the readers
and the decoder are trained on for a short while, and most of the time goes to the UNet, from the shipped
weights on.
`--from-scratch` trains everything. The stages that are left share the time that is left by `SHARES`; every
stage's learning rate falls to zero when its time is over, however fast the machine is.

Cut off at any moment and run again, it goes on where it was, with the time that it had left.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from checkpoints.recipe import (
    assemble,
    data,
    train_autoencoder,
    train_decoder,
    train_reader,
    train_text,
    train_unet,
)
from checkpoints.recipe.fit import pick_device

SHARES = {"autoencoder": 0.2, "text": 0.05, "judge": 0.04, "reward": 0.04, "unet": 1.0, "decoder": 0.1}
"""What a stage gets of the time that is left, relative to the stages that come with or after it."""
KEPT = ("vae", "text_encoder", "tokenizer")
ASSEMBLY_MINUTES = 0.1
LEAST_MINUTES = 0.02

Stage = Callable[[list[str]], None]


class Progress:
    """What was done in a work folder, so that a run that was cut off goes on.

    Attributes:
        done: stage -> seconds that it took.
        minutes: stage -> minutes that it was given when it first began.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        told = json.loads(file.read_text()) if file.exists() else {}
        self.done: dict[str, float] = told.get("done", {})
        self.minutes: dict[str, float] = told.get("minutes", {})

    def save(self) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps({"done": self.done, "minutes": self.minutes}, indent=2) + "\n")
        os.replace(new, self._file)


def share_of(stage: str, left: list[str], minutes: float) -> float:
    """Minutes for `stage` where it and the stages `left` have `minutes` between them."""
    return max(LEAST_MINUTES, minutes * SHARES[stage] / sum(SHARES[name] for name in left))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, required=True, help="how long everything may take")
    parser.add_argument("--work", type=Path, default=Path("build/landscapes"), help="folder of all stages")
    parser.add_argument("--out", type=Path, help="folder of the finished pipeline (default: WORK/model)")
    parser.add_argument(
        "--init", type=Path, default=Path("checkpoints/landscapes"), help="the model to start from"
    )
    parser.add_argument("--from-scratch", action="store_true", help="train everything, start from nothing")
    parser.add_argument("--pictures", type=int, help="training drawings (GPU 65,536, CPU 28,672)")
    parser.add_argument("--batch", type=int, help="samples per step of the UNet (GPU 512, CPU 64)")
    parser.add_argument("--learning-rate", type=float, default=6e-4, help="of the UNet (%(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto")
    args = parser.parse_args(argv)
    if args.minutes <= 0:
        parser.error("--minutes must be above 0")
    if not args.from_scratch and not (args.init / "unet").exists():
        parser.error(f"there is no model in {args.init}: name another with --init, or use --from-scratch")
    device = pick_device(args.device)
    out = args.out or args.work / "model"
    args.work.mkdir(parents=True, exist_ok=True)
    progress = Progress(args.work / "all.json")
    common = ["--work", str(args.work)]
    trained = [*common, "--device", str(device)]
    batch = args.batch or (512 if device.type == "cuda" else 64)
    # A GPU sees every drawing so often that it would learn a few by heart.
    pictures = str(args.pictures or (65_536 if device.type == "cuda" else 28_672))

    def init(folder: str) -> list[str]:
        return [] if args.from_scratch else ["--init", str(args.init / folder)]

    stages: dict[str, tuple[Stage, list[str]]] = {
        "drawings": (data.main, [*common, "--count", pictures]),
        "autoencoder": (train_autoencoder.main, trained),
        "text": (train_text.main, trained),
        "judge": (train_reader.main, ["judge", *trained, *init("readers")]),
        "reward": (train_reader.main, ["reward", *trained, *init("readers")]),
        "unet": (
            train_unet.main,
            [
                *trained,
                *init("unet"),
                *("--pictures", pictures, "--batch", str(batch)),
                *("--learning-rate", str(args.learning_rate)),
            ],
        ),
        "decoder": (
            train_decoder.main,
            [*trained, "--pictures", str(min(int(pictures), 8192)), "--batch", str(max(6, batch // 16))],
        ),
        "assemble": (assemble.main, [*common, "--out", str(out)]),
    }
    if not args.from_scratch:
        del stages["autoencoder"], stages["text"]
        # Once trained, the decoder is no longer the one to start from.
        for part in KEPT if "decoder" not in progress.done else ():
            shutil.copytree(args.init / part, args.work / "pipeline" / part, dirs_exist_ok=True)
    begun, before = time.monotonic(), sum(progress.done.values()) / 60
    for name, (stage, arguments) in stages.items():
        if name in progress.done:
            print(f"{name}: done before, in {progress.done[name]:.0f} s", flush=True)
            continue
        if name in SHARES:
            spent = before + (time.monotonic() - begun) / 60
            left = [other for other in SHARES if other in stages and other not in progress.done]
            given = share_of(name, left, args.minutes - spent - ASSEMBLY_MINUTES)
            arguments = [*arguments, "--minutes", f"{progress.minutes.setdefault(name, given):.3f}"]
            progress.save()
        print(f"\n== {name}: {stage.__module__} {' '.join(arguments)}", flush=True)
        started = time.monotonic()
        stage(arguments)
        progress.done[name] = time.monotonic() - started
        progress.save()
    total = sum(progress.done.values()) / 60
    print(f"\n{out} is ready, after {total:.1f} of {args.minutes:g} minutes.")
    print(f"Look at it: python -m checkpoints.recipe.evaluate --only finals --model {out}")


if __name__ == "__main__":
    main()
