"""Running plans: one evaluation for one sample, the loop for a batch, noise, and guidance."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from solver.plan import Plan

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(network input [B, ...], timesteps [B]) → output [B, ...]."""


def combine(weights: Sequence[float], tensors: Iterable[Tensor]) -> Tensor:
    """Σ weights · tensors as a new tensor: one pass over memory per term, no temporaries."""
    total: Tensor | None = None
    for weight, tensor in zip(weights, tensors, strict=False):
        if total is None:
            total = tensor * weight
        elif weight:
            total.add_(tensor, alpha=weight)
    assert total is not None
    return total


def advance(
    plan: Plan, i: int, x: Tensor, output: Tensor, history: Iterable[Tensor]
) -> tuple[Tensor, Tensor]:
    """Row i of a plan: (x[i+1], q[i]) from x[i], the network's output there, and q[i-1], q[i-2], …

    Tensors may have any one shape, a batch or a single sample; nothing is changed in place.
    """
    q = combine((plan.d[i], plan.c[i]), (output, x))
    return combine((plan.a[i], *plan.b[i]), (x, q, *history)), q


@dataclass(slots=True)
class SampleState:
    """Where one sample stands in its plan. Samples at different steps of different plans can share a batch:

        inputs = torch.stack([s.model_input() for s in states])
        outputs = denoise(inputs, torch.tensor([s.timestep for s in states]))
        for s, output in zip(states, outputs):
            s.step(output)

    Attributes:
        plan: the rows to follow.
        x: the state x[index], float32, of any shape; never changed in place.
        index: the next row, 0 … plan.nfe; `plan.nfe` when done, and x is the result then.
        history: q[index-1], q[index-2], …, no more than the plan needs.
    """

    plan: Plan
    x: Tensor
    index: int = 0
    history: deque[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.index <= self.plan.nfe:
            raise ValueError(f"index must be 0 to {self.plan.nfe}, not {self.index}.")
        self.x = self.x.float()
        self.history = deque(maxlen=max(self.plan.columns - 1, 0))

    @classmethod
    def start(cls, plan: Plan, noise: Tensor, clean: Tensor | None = None) -> SampleState:
        """The state at pure noise, from noise of unit variance; or at `clean`, noised to the first level."""
        if clean is None:
            return cls(plan, noise.float() * plan.init_noise_scale)
        return cls(plan, combine((plan.alpha[0], plan.sigma[0]), (clean.float(), noise.float())))

    @property
    def done(self) -> bool:
        """Whether no row is left, so that `x` is the result."""
        return self.index == self.plan.nfe

    @property
    def timestep(self) -> float:
        """What the network is to be told next."""
        return self.plan.timestep[self.index]

    def model_input(self) -> Tensor:
        """What the network is to be shown next, shaped as `x`."""
        scale = self.plan.input_scale[self.index]
        return self.x if scale == 1 else self.x * scale

    def x0(self, output: Tensor) -> Tensor:
        """The picture as expected from the network's output for `model_input()`; call before `step`."""
        c, d = self.plan.x0_weights(self.index)
        return combine((d, c), (output.float(), self.x))

    def step(self, output: Tensor) -> None:
        """Go on to the next row, given the network's output for `model_input()`.

        Raises:
            IndexError: the plan is done.
        """
        self.x, q = advance(self.plan, self.index, self.x, output.float(), self.history)
        self.history.appendleft(q)
        self.index += 1


@torch.no_grad()
def sample(
    plan: Plan, denoise: Denoiser, noise: Tensor, on_step: Callable[[int, Tensor], None] | None = None
) -> Tensor:
    """Follow a plan from noise to data.

    Args:
        plan: the solver.
        denoise: the network, called `plan.nfe` times with its input [B, ...] in the dtype of `noise` and one
            timestep per sample, float32 [B].
        noise: [B, ...] of unit variance, on the network's device.
        on_step: called after each evaluation with its number (1 … plan.nfe) and the pictures expected then,
            float32 [B, ...].

    Returns:
        float32 [B, ...], at the plan's last noise level.
    """
    state = SampleState.start(plan, noise)
    while not state.done:
        timesteps = torch.full((len(noise),), state.timestep, device=noise.device)
        output = denoise(state.model_input().to(noise.dtype), timesteps)
        x0 = state.x0(output) if on_step else None
        state.step(output)
        if on_step and x0 is not None:
            on_step(state.index, x0)
    return state.x


def noise_for_seed(seed: int, shape: Sequence[int]) -> Tensor:
    """Unit-variance noise of one sample, float32 on the CPU: a seed is a picture, whatever batch or device.

    Args:
        seed: 0 … 2**63 - 1.
        shape: of one sample, (channels, height, width) for instance.
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"A seed is a whole number from 0 to 2**63 - 1, not {seed}.")
    return torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)


def spherical_interpolation(one: Tensor, other: Tensor, amount: float) -> Tensor:
    """From one noise towards another, along the great circle between them (Shoemake 1985), so that what lies
    between has a noise's norm too.

    Args:
        one, other: of one sample each and one shape.
        amount: 0 is `one` exactly, 1 is `other` exactly.
    """
    if amount in (0, 1):
        return other if amount else one
    cosine = torch.sum(one * other) / (one.norm() * other.norm())
    angle = torch.arccos(cosine.clamp(-1, 1))
    if torch.sin(angle) < 1e-6:  # the same noise, or its opposite: there is no one circle
        return torch.lerp(one, other, amount)
    return (torch.sin((1 - amount) * angle) * one + torch.sin(amount * angle) * other) / torch.sin(angle)


def classifier_free_guidance(uncond: Tensor, cond: Tensor, scale: float | Tensor) -> Tensor:
    """uncond + scale · (cond - uncond), Ho & Salimans 2022 (their w is scale - 1).

    Args:
        uncond, cond: outputs without and with the prompt, [B, ...] each.
        scale: one number, or one per sample [B].
    """
    if isinstance(scale, Tensor):
        scale = scale.to(cond.device, cond.dtype).reshape(-1, *[1] * (cond.dim() - 1))
    return uncond + scale * (cond - uncond)


def guided(denoise: Denoiser, scale: float | Tensor) -> Denoiser:
    """A denoiser of B samples from one of 2B, whose first B are without the prompt and last B with it.

    Args:
        denoise: called once per evaluation, with each input and timestep twice.
        scale: guidance, one number or one per sample [B]; 1 follows the prompt's prediction alone.
    """

    def both(x: Tensor, timesteps: Tensor) -> Tensor:
        uncond, cond = denoise(torch.cat([x, x]), torch.cat([timesteps, timesteps])).chunk(2)
        return classifier_free_guidance(uncond, cond, scale)

    return both
