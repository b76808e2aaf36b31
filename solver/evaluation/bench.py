"""Measure what the solver itself costs: python -m solver bench

Measures a scheduler step beside a step of diffusers' DPMSolverMultistepScheduler on the same tensors, the
recovery of a 40-step plan from a scheduler, and `import solver`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

STEPS = 20
SIZES = (16, 32, 64, 128)
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
HEAVY = ("gradio", "transformers", "diffusers")


def milliseconds(run: Callable[[], Any]) -> float:
    """Return the milliseconds that `run` takes."""
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def follow(scheduler: Any, x: Tensor, output: Tensor) -> None:
    """Run a pipeline's sampling loop with a constant network output."""
    scheduler.set_begin_index(0)
    for t in scheduler.timesteps:
        x = scheduler.step(output, t, x, return_dict=False)[0]
    if x.is_cuda:
        torch.cuda.synchronize()


def step_cost(size: int, device: str, repeats: int) -> dict[str, float]:
    """Return the median milliseconds of a step on latents [1, 4, size, size]; the schedulers take turns."""
    from diffusers import DPMSolverMultistepScheduler

    from solver import ConsistencySolverScheduler

    schedulers = {"ours": ConsistencySolverScheduler(**SD), "diffusers": DPMSolverMultistepScheduler(**SD)}
    generator = torch.Generator().manual_seed(0)
    x, output = (torch.randn(1, 4, size, size, generator=generator).to(device) for _ in range(2))
    times: dict[str, list[float]] = {name: [] for name in schedulers}
    for repeat in range(repeats + 1):
        for name, scheduler in schedulers.items():
            scheduler.set_timesteps(STEPS, device=device)
            elapsed = milliseconds(partial(follow, scheduler, x, output))
            if repeat:  # the first run warms up
                times[name].append(elapsed / STEPS)
    return {name: statistics.median(values) for name, values in times.items()}


def probe_cost(class_name: str, repeats: int) -> float:
    """Return the median milliseconds to recover a 40-step plan from a scheduler."""
    import diffusers

    from solver import read_plan

    scheduler = getattr(diffusers, class_name)(**SD)
    read_plan(scheduler, 40)
    return statistics.median(milliseconds(lambda: read_plan(scheduler, 40)) for _ in range(repeats))


def import_cost() -> dict[str, Any]:
    """Return the seconds of a new Python process that imports `solver`, and the modules of HEAVY it
    imported."""
    code = f"import json, sys, solver; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    start, before = time.perf_counter(), os.times()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    seconds, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": seconds, "cpu_seconds": cpu, "heavy": json.loads(out)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="device of the latents (default: cpu)")
    parser.add_argument("--repeats", type=int, default=15, help="runs per median")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    result = {
        "import": import_cost(),
        "step_ms": {size: step_cost(size, options.device, options.repeats) for size in SIZES},
        "probe_40_steps_ms": {
            name: probe_cost(name, options.repeats)
            for name in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
        },
        "device": options.device,
        "threads": torch.get_num_threads(),
    }
    if options.json:
        print(json.dumps(result))
        return
    cost = result["import"]
    print(f"import solver  {cost['seconds']:.2f} s ({cost['cpu_seconds']:.2f} s CPU), brings {cost['heavy']}")
    for size, cost in result["step_ms"].items():
        share = cost["ours"] / cost["diffusers"]
        print(
            f"step {size:>3}²      {cost['ours']:.3f} ms, diffusers {cost['diffusers']:.3f} ms ({share:.0%})"
        )
    for name, cost in result["probe_40_steps_ms"].items():
        print(f"40-step probe  {cost:.1f} ms  {name}")
