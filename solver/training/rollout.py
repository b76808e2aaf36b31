"""Plans as tensors: many at once, and differentiable, as training needs them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from solver.multistep import transport
from solver.plan import Plan, coordinates
from solver.sampling import Denoiser
from solver.schedule import FLOW_SIGMA_MAX, NoiseSchedule


@dataclass(frozen=True)
class Tables:
    """B plans of N evaluations each, float64; what the entries mean, `Plan` says. B may be 1 for any batch.

    timestep, a, c, d: [B, N]. alpha, sigma: [B, N + 1]. b: [B, N, m], newest output first, zero for outputs
    that do not exist yet.
    """

    timestep: Tensor
    alpha: Tensor
    sigma: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor

    @property
    def nfe(self) -> int:
        """Number of network evaluations of each."""
        return self.timestep.shape[1]

    def plan(self, row: int, solver: str, prediction_type: str) -> Plan:
        """One of them as a `Plan`."""
        values = {f.name: getattr(self, f.name)[row].tolist() for f in fields(self)}
        values["b"] = [weights[: i + 1] for i, weights in enumerate(values["b"])]
        return Plan(solver=solver, prediction_type=prediction_type, input_scale=(1.0,) * self.nfe, **values)


def tables_of(plan: Plan) -> Tables:
    """A plan as a batch of one.

    Raises:
        ValueError: a plan that keeps its state in another scaling than the network's (Heun's).
    """
    if {plan.init_noise_scale, *plan.input_scale} != {1.0}:
        raise ValueError(f"{plan.solver} keeps its state in a scaling of its own; it can't be rolled out.")
    values = {f.name: getattr(plan, f.name) for f in fields(Tables)}
    values["b"] = [(*row, *[0.0] * (plan.columns - len(row)))[: plan.columns] for row in plan.b]
    return Tables(**{name: torch.tensor([value], dtype=torch.float64) for name, value in values.items()})


def levels(schedule: NoiseSchedule, log_snr: Tensor, end: float = math.inf) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) [B, N + 1] at N log-SNRs [B, N] and at that of the end; `NoiseSchedule.levels`."""
    power = 1 if schedule.is_flow else 2
    ends = torch.cat([log_snr, torch.full_like(log_snr[:, :1], end)], dim=1)
    return torch.sigmoid(power * ends) ** (1 / power), torch.sigmoid(-power * ends) ** (1 / power)


def timestep(schedule: NoiseSchedule, log_snr: Tensor) -> Tensor:
    """The timesteps at which the schedule has these log-SNRs, any shape; `NoiseSchedule.timestep`."""
    T = schedule.num_train_timesteps
    if schedule.is_flow:
        return T * torch.sigmoid(-log_snr).clamp(max=FLOW_SIGMA_MAX)
    table = torch.from_numpy(schedule.log_snr(range(T))).to(log_snr)
    after = torch.searchsorted(-table, -log_snr.detach().contiguous()).clamp(1, T - 1)
    share = (table[after - 1] - log_snr) / (table[after - 1] - table[after])
    return after - 1 + share.clamp(0, 1)


def multistep_tables(
    weights: Tensor,
    read_as: str,
    schedule: NoiseSchedule,
    log_snr: Tensor,
    told: Tensor,
    end: float = math.inf,
) -> Tables:
    """`multistep_plan` for a batch, differentiable in all its numbers.

    Args:
        weights: [B, N, m], newest output first, zero where there is none yet.
        read_as: what the rows combine.
        log_snr: [B, N], rising; where the ODE stands.
        told: [B, N] or [1, N], the timesteps that the network is told.
        end: the log-SNR where the last row arrives; ∞ is the clean end, σ = 0.
    """
    alpha, sigma = levels(schedule, log_snr, end)
    A, B = transport(read_as, (told, alpha, sigma))
    p, r = coordinates(schedule.prediction_type, alpha[:, :-1], sigma[:, :-1])
    u, w = coordinates(read_as, 1.0, 0.0)
    determinant = alpha[:, :-1] * r - sigma[:, :-1] * p
    c, d = (u * r - w * p) / determinant, (alpha[:, :-1] * w - sigma[:, :-1] * u) / determinant
    return Tables(told.expand_as(log_snr), alpha, sigma, A, B[..., None] * weights, c, d)


def rollout(tables: Tables, denoise: Denoiser, noise: Tensor, *, checkpointed: bool = False) -> Tensor:
    """`solver.sample` with a table for each sample, through which gradients flow.

    Args:
        tables: B tables, or one for all samples.
        denoise: the network, called N times with [B, ...] and timesteps float32 [B].
        noise: [B, ...] of unit variance.
        checkpointed: evaluate the network again on the way back instead of keeping what it computed, so that
            memory does not grow with the number of steps (Chen et al. 2016, arXiv 1604.06174).

    Returns:
        Latents [B, ...] float32.
    """
    shape = (-1, *[1] * (noise.dim() - 1))
    rows = {f.name: getattr(tables, f.name).float().to(noise.device) for f in fields(tables)}
    x = noise.float()
    history: list[Tensor] = []
    for i in range(tables.nfe):
        t = rows["timestep"][:, i].expand(len(noise))
        output = checkpoint(denoise, x, t, use_reentrant=False) if checkpointed else denoise(x, t)
        q = rows["c"][:, i].view(shape) * x + rows["d"][:, i].view(shape) * output.float()
        history = [q, *history][: rows["b"].shape[-1]]
        x = rows["a"][:, i].view(shape) * x
        for k, output_k in enumerate(history):
            x = x + rows["b"][:, i, k].view(shape) * output_k
    return x
