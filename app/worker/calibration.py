"""Measure what ticks with a model cost on its device."""

import time
from collections.abc import Callable
from functools import partial

import torch

from app.models import ImageModel
from app.models.memory import is_out_of_memory
from app.worker.costs import Costs
from app.worker.denoiser import wait_for_device
from solver import SampleState, make_plan, noise_for_seed
from solver.diffusion import Conditions

# Numbers of rows to measure calls with; a picture with guidance has two.
BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
REPEATS = 2


@torch.inference_mode()
def calibrate(model: ImageModel) -> Costs:
    """Measure the costs of ticks; takes a second or two, and pays for what first calls cost extra."""
    diffusion = model.diffusion
    plan = make_plan("consistency", 6, model.facts.schedule, learned=model.facts.learned)
    state = SampleState.start(plan, noise_for_seed(0, diffusion.latent_shape).to(model.device))
    (prompt,) = model.encode_each([""])

    def call(rows: int) -> None:
        x, text = torch.stack([state.model_input()] * rows), Conditions.cat([prompt] * rows)
        diffusion.denoise(x, torch.full((rows,), state.timestep), text, text, torch.ones(rows))
        wait_for_device(model.device)

    def encode() -> None:
        model.remembered.clear()
        model.encode_each([""])
        wait_for_device(model.device)

    model.pictures(state.x[None])
    return measure_costs(call, lambda: model.pictures(state.x[None], preview=True), encode)


def measure_costs(
    call: Callable[[int], object], decode: Callable[[], object], encode: Callable[[], object]
) -> Costs:
    """Time `call` with more and more rows until the knee is passed; `decode` and `encode` for one picture.

    Each is called once beforehand, since first calls are slower. The growth also ends where memory runs out.
    """
    rows: list[int] = []
    seconds: list[float] = []
    call(BUCKETS[0])
    for bucket in BUCKETS:
        try:
            seconds.append(_fastest(partial(call, bucket)))
        except RuntimeError as error:
            if not rows or not is_out_of_memory(error):
                raise
            break
        rows.append(bucket)
        if Costs(tuple(rows), tuple(seconds), 0).knee < bucket and bucket > 2:
            break
    decode()
    encode()
    return Costs(tuple(rows), tuple(seconds), _fastest(decode), _fastest(encode))


def _fastest(action: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return min(times)
