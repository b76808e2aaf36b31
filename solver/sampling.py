"""Running plans: one evaluation for one sample, the loop for a batch, noise, and guidance."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from solver.plan import Plan, Tables, x0_weights

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(network input [B, ...], timesteps [B], float32) → output [B, ...]."""

OnStep = Callable[[int, Tensor], None]
"""(number of the evaluation, 1 … N; pictures predicted there, float32 [B, ...])."""


def advance(
    plan: Plan | Tables, i: int, x: Tensor, output: Tensor, history: Iterable[Tensor]
) -> tuple[Tensor, Tensor]:
    """Row i of a plan: return (x[i+1], q[i]) from x[i], the network's output there, and q[i-1], q[i-2], …

    Tensors may have any one shape, a batch or a single sample; nothing is changed in place.
    """
    q = plan.c[i] * x + plan.d[i] * output
    x = plan.a[i] * x
    for weight, past in zip(plan.b[i], (q, *history), strict=False):
        x = x + weight * past
    return x, q


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

    Raises:
        ValueError: an index out of range, or one past the first whose rows use earlier outputs.
    """

    plan: Plan
    x: Tensor
    index: int = 0
    history: deque[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.index <= self.plan.nfe:
            raise ValueError(f"index must be 0 to {self.plan.nfe}, not {self.index}.")
        for i in range(self.index, self.plan.nfe if self.index else 0):
            if any(self.plan.b[i][i - self.index + 1 :]):
                raise ValueError(
                    f"Row {i} of {self.plan.solver} uses outputs from before row {self.index}, which are not "
                    "there. Make a plan that begins at this noise level: make_plan(..., strength=...), or "
                    "LearnedSolver.plan_on with the remaining levels."
                )
        self.x = self.x.float()
        self.history = deque(maxlen=max(self.plan.columns - 1, 0))

    @classmethod
    def start(cls, plan: Plan, noise: Tensor, clean: Tensor | None = None) -> SampleState:
        """Start at pure noise, given noise of unit variance; or at `clean`, noised to the first level."""
        if clean is None:
            return cls(plan, noise.float() * plan.init_noise_scale)
        return cls(plan, plan.alpha[0] * clean.float() + plan.sigma[0] * noise.float())

    @property
    def done(self) -> bool:
        """Whether no row is left; `x` is the result then."""
        return self.index == self.plan.nfe

    @property
    def timestep(self) -> float:
        """The timestep to tell the network next."""
        return self.plan.timestep[self.index]

    def model_input(self) -> Tensor:
        """Return the network's next input, shaped as `x`."""
        scale = self.plan.input_scale[self.index]
        return self.x if scale == 1 else self.x * scale

    def x0(self, output: Tensor) -> Tensor:
        """Predict the picture from the network's output for `model_input()`; call before `step`."""
        c, d = x0_weights(self.plan, self.index)
        return c * self.x + d * output.float()

    def step(self, output: Tensor) -> None:
        """Advance by one row, given the network's output for `model_input()`.

        Raises:
            IndexError: the plan is done.
        """
        self.x, q = advance(self.plan, self.index, self.x, output.float(), self.history)
        self.history.appendleft(q)
        self.index += 1


def sample(plan: Plan | Tables, denoise: Denoiser, noise: Tensor, on_step: OnStep | None = None) -> Tensor:
    """Follow a plan from noise to data.

    Args:
        plan: the solver; or `Tables`, one per sample or one for all, through which gradients flow.
        denoise: the network, called once per evaluation with its input in the dtype of `noise`.
        noise: [B, ...] of unit variance, on the network's device.
        on_step: called after each evaluation.

    Returns:
        float32 [B, ...], at the plan's last noise level.
    """
    with torch.set_grad_enabled(isinstance(plan, Tables) and plan.requires_grad):
        x, q = noise.float() * plan.init_noise_scale, deque[Tensor](maxlen=plan.columns)
        plan = plan.beside(x) if isinstance(plan, Tables) else plan
        for i, t in enumerate(plan.timestep):
            timesteps = torch.as_tensor(t, dtype=torch.float32, device=x.device).flatten().expand(len(x))
            output = denoise((plan.input_scale[i] * x).to(noise.dtype), timesteps).float()
            q.appendleft(plan.c[i] * x + plan.d[i] * output)  # newest first: q[k] is the q[i-k] of a row
            before, x = x, sum((b * past for b, past in zip(plan.b[i], q, strict=False)), plan.a[i] * x)
            if on_step:
                c, d = x0_weights(plan, i)
                on_step(i + 1, c * before + d * output)
        return x


def noise_for_seed(seed: int, shape: Sequence[int]) -> Tensor:
    """Draw unit-variance noise of one sample, float32 on the CPU, so it depends on neither batch nor device.

    Args:
        seed: 0 … 2**63 - 1.
        shape: of one sample, (channels, height, width) for instance.
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"A seed is a whole number from 0 to 2**63 - 1, not {seed}.")
    return torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)


def spherical_interpolation(one: Tensor, other: Tensor, amount: float) -> Tensor:
    """Interpolate two noises along the great circle between them (Shoemake 1985), which keeps their norm.

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
    """Return uncond + scale · (cond - uncond) (Ho & Salimans 2022; their w is scale - 1).

    Args:
        uncond, cond: outputs without and with the prompt, [B, ...] each.
        scale: one number, or one per sample [B].
    """
    if isinstance(scale, Tensor):
        scale = scale.to(cond.device, cond.dtype).reshape(-1, *[1] * (cond.dim() - 1))
    return uncond + scale * (cond - uncond)


def guided(denoise: Denoiser, scale: float | Tensor) -> Denoiser:
    """Make a guided denoiser of B samples from one of 2B: the first B without the prompt, the last B with it.

    Args:
        denoise: called once per evaluation, with each input and timestep twice.
        scale: guidance, one number or one per sample [B]; 1 follows the prompt's prediction alone.
    """

    def both(x: Tensor, timesteps: Tensor) -> Tensor:
        uncond, cond = denoise(torch.cat([x, x]), torch.cat([timesteps, timesteps])).chunk(2)
        return classifier_free_guidance(uncond, cond, scale)

    return both
