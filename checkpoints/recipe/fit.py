"""One training loop for every network of the recipe: resumable at any moment, with progress and a log."""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

Model = TypeVar("Model", bound=nn.Module)
LossFn = Callable[[nn.Module, np.random.Generator], tuple[Tensor, dict[str, float]]]
"""(model, generator of this step) -> the scalar to descend, and figures for the log."""


def stage_parser(description: str | None, *, steps: int, batch: int) -> argparse.ArgumentParser:
    """The options that every training stage has, with this stage's own defaults."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--work", type=Path, default=Path("build/landscapes"), help="where all stages keep their files"
    )
    parser.add_argument("--steps", type=int, default=steps, help="optimiser steps (%(default)s)")
    parser.add_argument("--batch", type=int, default=batch, help="samples per step (%(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto")
    return parser


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def warmup_stable_decay(step: int, steps: int, warmup: int, decay: float) -> float:
    """Learning-rate factor: a linear warm-up, a plateau, a linear fall to zero over the last share `decay`.

    The plateau is what allows a run to be prolonged: raise `steps` and resume.
    """
    return min((step + 1) / warmup, (steps - step) / max(1.0, decay * steps), 1.0)


def _matrix_view(weight: Tensor) -> Tensor:
    """(out, rest), sharing the weight's storage; a kernel in channels-last memory keeps that order."""
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        weight = weight.permute(0, 2, 3, 1)
    return weight.view(len(weight), -1)


class MuonWithAdamW:
    """Muon (Jordan et al. 2024) on matrices and convolution kernels, AdamW on embeddings, biases and gains.

    On the autoencoder it reached in 250 steps what AdamW alone reached in 1,500. torch's Muon takes matrices
    only, so it is handed views of the kernels. With `match_rms_adamw` its updates are smaller than AdamW's
    early on, hence the factor.
    """

    MUON_FACTOR = 5.0

    def __init__(self, model: nn.Module, weight_decay: float) -> None:
        embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        trainable = [p for p in model.parameters() if p.requires_grad]
        self._weights = [p for p in trainable if p.ndim in (2, 4) and id(p) not in embeddings]
        self._views = [nn.Parameter(_matrix_view(p.data)) for p in self._weights]
        rest = [p for p in trainable if all(p is not w for w in self._weights)]
        self._muon = torch.optim.Muon(self._views, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self._adamw = torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=0.0)

    def step(self, learning_rate: float) -> None:
        """Descend along the gradients that the model's parameters hold, then forget them."""
        for weight, view in zip(self._weights, self._views, strict=True):
            if weight.grad is not None:
                view.grad = _matrix_view(weight.grad.contiguous(memory_format=_memory_format(weight)))
                weight.grad = None
        for optimizer, factor in ((self._muon, self.MUON_FACTOR), (self._adamw, 1.0)):
            for group in optimizer.param_groups:
                group["lr"] = factor * learning_rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, dict]:
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state: dict[str, dict]) -> None:
        self._muon.load_state_dict(state["muon"])
        self._adamw.load_state_dict(state["adamw"])


def _memory_format(weight: Tensor) -> torch.memory_format:
    last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def fit(
    folder: Path,
    model: Model,
    loss_fn: LossFn,
    *,
    steps: int,
    learning_rate: float,
    device: torch.device,
    warmup: int = 200,
    decay: float = 0.3,
    weight_decay: float = 0.01,
    ema_decay: float = 0.0,
    save_every: float = 60.0,
    seed: int = 0,
) -> Model:
    """Train `model` for `steps` steps, going on from `folder` if an earlier run was cut off.

    Every step draws its randomness from (seed, step) alone, so a resumed run sees what an uninterrupted one
    would have seen. The state is written every `save_every` seconds and at the end, by rename, so that no
    interruption leaves half a file; figures go to `folder/log.jsonl`.

    Returns:
        The trained model in eval mode, on `device`; its exponential moving average when `ema_decay` > 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state_file, log_file = folder / "state.pt", folder / "log.jsonl"
    model.to(device).train()
    average = copy.deepcopy(model).eval().requires_grad_(False) if ema_decay else None
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = MuonWithAdamW(model, weight_decay)
    first = 0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if average is not None:
            average.load_state_dict(state["average"])
        first = state["step"]

    def save(step: int) -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        if average is not None:
            state["average"] = average.state_dict()
        torch.save(state, state_file.with_suffix(".new"))
        os.replace(state_file.with_suffix(".new"), state_file)

    saved = time.monotonic()
    figures: dict[str, float] = {}
    started = time.monotonic()
    with log_file.open("a") as log, tqdm(range(first, steps), initial=first, total=steps, unit="step") as bar:
        for step in bar:
            torch.manual_seed(1_000_003 * seed + step)
            factor = warmup_stable_decay(step, steps, warmup, decay)
            loss, extra = loss_fn(model, np.random.default_rng((seed, step)))
            loss.backward()
            nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step(learning_rate * factor)
            if average is not None:
                # A young average would remember the initialisation: its memory grows with the run.
                beta = min(ema_decay, (step + 1) / (step + 10))
                with torch.no_grad():
                    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - beta)
            for name, value in {"loss": loss.item(), **extra}.items():
                figures[name] = 0.95 * figures.get(name, value) + 0.05 * value
            if step % 20 == 0 or step == steps - 1:
                bar.set_postfix({k: f"{v:.4g}" for k, v in figures.items()})
                seconds = round(time.monotonic() - started, 1)
                log.write(json.dumps({"step": step, "seconds": seconds, **figures}) + "\n")
                log.flush()
            if time.monotonic() - saved > save_every:
                save(step + 1)
                saved = time.monotonic()
    if first < steps:
        save(steps)
    return (average if average is not None else model).eval()
