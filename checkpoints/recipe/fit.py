"""One training loop for every network of the recipe: resumable at any moment, with progress and a log."""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

Model = TypeVar("Model", bound=nn.Module)
LossFn = Callable[[nn.Module, np.random.Generator], tuple[Tensor, dict[str, Any]]]
"""(model, generator of this step) -> the scalar to descend, and figures (float or Tensor) for the log."""


def stage_parser(description: str | None, *, steps: int, batch: int) -> argparse.ArgumentParser:
    """The options that every training stage has, with this stage's own defaults."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--work", type=Path, default=Path("build/landscapes"), help="where all stages keep their files"
    )
    parser.add_argument("--steps", type=int, default=steps, help="optimiser steps (%(default)s)")
    parser.add_argument(
        "--minutes", type=float, help="train for so long instead; the learning rate falls with the time"
    )
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


def factor_by_time(step: int, spent: float, budget: float, warmup: int, decay: float) -> float:
    """The same where `budget` seconds are given instead of steps; zero or below when they are over."""
    if budget <= 0:  # preparing took longer than was given
        return 0.0
    return min((step + 1) / warmup, (1 - spent / budget) / max(decay, 1e-3), 1.0)


def _matrix(weight: Tensor) -> Tensor:
    """(out, rest), sharing the weight's storage; a kernel in channels-last memory keeps that order."""
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        weight = weight.permute(0, 2, 3, 1)
    return weight.view(len(weight), -1)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Bring all singular values of (n, a, b) near one, by five Newton-Schulz steps in bfloat16."""
    x = matrices.bfloat16()
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return (x.mT if tall else x).to(matrices.dtype)


class MuonWithAdamW:
    """Muon (Jordan et al. 2024) on matrices and convolution kernels, AdamW on embeddings, biases and gains.

    On the autoencoder it reached in 250 steps what AdamW alone reached in 1,500. Kernels count as matrices
    (out, rest). All matrices of one shape are orthogonalised in one call, or a GPU would mostly wait for the
    launches of small products. Updates have the root mean square of AdamW's (Liu et al. 2025), which early on
    are larger, hence the factor.
    """

    MUON_FACTOR = 5.0
    MOMENTUM = 0.95

    def __init__(self, model: nn.Module, weight_decay: float) -> None:
        embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        trainable = [p for p in model.parameters() if p.requires_grad]
        weights = [p for p in trainable if p.ndim in (2, 4) and id(p) not in embeddings]
        self._groups: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for weight in weights:
            self._groups.setdefault(tuple(_matrix(weight.data).shape), []).append(weight)
        self._momenta = [
            torch.zeros(len(group), *shape, device=group[0].device) for shape, group in self._groups.items()
        ]
        taken = {id(p) for p in weights}
        self._adamw = torch.optim.AdamW(
            [p for p in trainable if id(p) not in taken], betas=(0.9, 0.99), weight_decay=0.0
        )
        self._weight_decay = weight_decay

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Descend along the gradients that the model's parameters hold, then forget them."""
        rate = self.MUON_FACTOR * learning_rate
        for group, momentum in zip(self._groups.values(), self._momenta, strict=True):
            gradients = torch.stack([_matrix(_gradient(weight)) for weight in group])
            momentum.lerp_(gradients, 1 - self.MOMENTUM)
            update = orthogonalised(gradients.lerp_(momentum, self.MOMENTUM))
            scale = 0.2 * max(update.shape[1:]) ** 0.5
            matrices = [_matrix(w.data) for w in group]
            torch._foreach_mul_(matrices, 1 - rate * self._weight_decay)
            torch._foreach_add_(matrices, list(update), alpha=-rate * scale)
            for weight in group:
                weight.grad = None
        for options in self._adamw.param_groups:
            options["lr"] = learning_rate
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"momenta": self._momenta, "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch._foreach_copy_(self._momenta, state["momenta"])
        self._adamw.load_state_dict(state["adamw"])


def _gradient(weight: Tensor) -> Tensor:
    """The gradient in the memory order of its weight; zeros for a weight that had no part in the loss."""
    if weight.grad is None:
        return torch.zeros_like(weight)
    last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return weight.grad.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def fit(
    folder: Path,
    model: Model,
    loss_fn: LossFn,
    *,
    steps: int,
    minutes: float | None = None,
    learning_rate: float,
    device: torch.device,
    warmup: int = 200,
    decay: float = 0.3,
    weight_decay: float = 0.01,
    ema_decay: float = 0.0,
    save_every: float = 60.0,
    seed: int = 0,
) -> Model:
    """Train `model` for `steps` steps or `minutes`, going on from `folder` if an earlier run was cut off.

    With `minutes`, which count instead of `steps`, the learning rate falls with the time spent, all runs
    counted, so that it reaches zero when the time is over however fast the machine is.

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
    steps = steps if minutes is None else sys.maxsize
    first, spent = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if average is not None:
            average.load_state_dict(state["average"])
        first, spent = state["step"], state["seconds"]

    def save(step: int) -> None:
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "seconds": spent,
        }
        if average is not None:
            state["average"] = average.state_dict()
        torch.save(state, state_file.with_suffix(".new"))
        os.replace(state_file.with_suffix(".new"), state_file)

    figures: dict[str, Any] = {}
    started, before, step = time.monotonic(), spent, first
    saved = started
    bar = tqdm(initial=first, total=steps if minutes is None else None, unit="step", desc=folder.name)
    with log_file.open("a") as log, bar:
        while step < steps:
            spent = before + time.monotonic() - started
            factor = warmup_stable_decay(step, steps, warmup, decay)
            if minutes is not None:
                factor = factor_by_time(step, spent, 60 * minutes, warmup, decay)
                if factor <= 0:
                    break
            torch.manual_seed(1_000_003 * seed + step)
            loss, extra = loss_fn(model, np.random.default_rng((seed, step)))
            loss.backward()
            nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step(learning_rate * factor)
            if average is not None:
                # A young average would remember the initialisation: its memory grows with the run.
                beta = min(ema_decay, (step + 1) / (step + 10))
                with torch.no_grad():
                    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - beta)
            for name, value in {"loss": loss.detach(), **extra}.items():
                figures[name] = 0.95 * figures.get(name, value) + 0.05 * value
            bar.update()
            if step % 20 == 0 or step == steps - 1:
                told = {name: float(value) for name, value in figures.items()}
                bar.set_postfix({k: f"{v:.4g}" for k, v in told.items()} | {"rate": f"{factor:.2f}"})
                log.write(json.dumps({"step": step, "seconds": round(spent, 1), **told}) + "\n")
                log.flush()
            step += 1
            if time.monotonic() - saved > save_every:
                save(step)
                saved = time.monotonic()
    if first < step:
        save(step)
    return (average if average is not None else model).eval()


def branch(source: Path, target: Path) -> None:
    """Copy the state of the run in `source` to `target`, where its clock starts anew.

    Raises:
        FileNotFoundError: nothing was trained in `source` yet.
    """
    if not (source / "state.pt").exists():
        raise FileNotFoundError(f"no run in {source} to branch off")
    state = torch.load(source / "state.pt", map_location="cpu", weights_only=True)
    target.mkdir(parents=True, exist_ok=True)
    torch.save(state | {"seconds": 0.0}, target / "state.pt")
