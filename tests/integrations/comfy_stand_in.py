"""A small stand-in for the parts of ComfyUI's interface that the nodes use; no line of it is ComfyUI's.

It has the conventions that decide what a sampler gets: a state of x0 + σ · noise, on a flow of (1 - σ) · x0 +
σ · noise; noise scaled to unit variance where a run starts at the model's highest level; levels told, and
rounded to a timestep of the model's table.
"""

import math
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from solver import NoiseSchedule
from solver.plan import convert_prediction

Network = Callable[[Tensor, Tensor], Tensor]


def per_sample(sigma: Tensor, like: Tensor) -> Tensor:
    return sigma.reshape(-1, *[1] * (like.dim() - 1))


class Sampling:
    """A model's noise levels, and how it reads states and outputs; of a diffusion model."""

    def __init__(self, schedule: NoiseSchedule, rounded: bool = True) -> None:
        self.schedule, self.rounded = schedule, rounded
        t = torch.arange(1.0 if schedule.is_flow else 0.0, schedule.num_train_timesteps + schedule.is_flow)
        self.sigmas = self.sigma(t).float()
        self.sigma_max, self.sigma_min = self.sigmas[-1], self.sigmas[0]

    def sigma(self, t: Tensor) -> Tensor:
        return (-self.schedule.lam(t)).exp()

    def timestep(self, sigma: Tensor) -> Tensor:
        t = self.schedule.timestep(-sigma.double().log())
        return t.round() if self.rounded else t

    def network_input(self, sigma: Tensor, x: Tensor) -> Tensor:
        return x / (1 + per_sample(sigma, x) ** 2).sqrt()

    def denoised(self, sigma: Tensor, output: Tensor, network_input: Tensor) -> Tensor:
        alpha = 1 / (1 + sigma.double() ** 2).sqrt()
        c, d = convert_prediction(self.schedule.prediction_type, "sample", alpha, sigma * alpha)
        ones = torch.ones_like(alpha)
        c, d = (per_sample(v * ones, output).float() for v in (c, d))
        return c * network_input + d * output

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent: Tensor, max_denoise: bool) -> Tensor:
        return noise * (math.sqrt(1 + float(sigma) ** 2) if max_denoise else float(sigma)) + latent

    def inverse_noise_scaling(self, sigma: Tensor, latent: Tensor) -> Tensor:
        return latent


class Const(Sampling):
    """The same of a flow."""

    def sigma(self, t: Tensor) -> Tensor:
        u = t.double() / self.schedule.num_train_timesteps
        return self.schedule.shift * u / (1 + (self.schedule.shift - 1) * u)

    def timestep(self, sigma: Tensor) -> Tensor:
        return sigma * self.schedule.num_train_timesteps

    def network_input(self, sigma: Tensor, x: Tensor) -> Tensor:
        return x

    def denoised(self, sigma: Tensor, output: Tensor, network_input: Tensor) -> Tensor:
        return network_input - per_sample(sigma, output) * output

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent: Tensor, max_denoise: bool) -> Tensor:
        return sigma * noise + (1 - sigma) * latent

    def inverse_noise_scaling(self, sigma: Tensor, latent: Tensor) -> Tensor:
        return latent / (1 - sigma)


@dataclass
class Model:
    """What a MODEL input is: here a network, its levels, and how often it was asked."""

    network: Network
    sampling: Sampling
    calls: list[Tensor] = field(default_factory=list)

    def get_model_object(self, name: str) -> Any:
        assert name == "model_sampling"
        return self.sampling

    def denoised(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls.append(sigma)
        network_input = self.sampling.network_input(sigma, x)
        output = self.network(network_input, self.sampling.timestep(sigma).float())
        return self.sampling.denoised(sigma, output, network_input)


class KSampler:
    """KSAMPLER: a function with its options, and the scaling around it."""

    def __init__(self, sampler_function: Any, extra_options: Any = None, inpaint_options: Any = None) -> None:
        self.sampler_function, self.extra_options = sampler_function, extra_options or {}

    def sample(
        self, model: Model, sigmas: Tensor, extra_args: Any, callback: Any, noise: Tensor, latent: Tensor
    ) -> Tensor:
        sampling, first = model.sampling, float(sigmas[0])
        highest = float(sampling.sigma_max)
        max_denoise = math.isclose(highest, first, rel_tol=1e-5) or first > highest
        x = sampling.noise_scaling(sigmas[0], noise, latent, max_denoise)

        def wrapped(x: Tensor, sigma: Tensor, **given: Any) -> Tensor:
            assert given == extra_args
            return model.denoised(x, sigma)

        told = (
            None
            if callback is None
            else lambda at: callback(at["i"], at["denoised"], at["x"], len(sigmas) - 1)
        )
        x = self.sampler_function(
            wrapped, x, sigmas, extra_args=extra_args, callback=told, disable=True, **self.extra_options
        )
        return sampling.inverse_noise_scaling(sigmas[-1], x)


def sample_custom(
    model: Model,
    noise: Tensor,
    cfg: float,
    sampler: KSampler,
    sigmas: Tensor,
    positive: Any,
    negative: Any,
    latent_image: Tensor,
    noise_mask: Any = None,
    callback: Any = None,
    disable_pbar: bool = False,
    seed: int | None = None,
) -> Tensor:
    return sampler.sample(model, sigmas, {"seed": seed}, callback, noise, latent_image)


def prepare_noise(latent: Tensor, seed: int) -> Tensor:
    return torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))


@contextmanager
def installed() -> Iterator[list[int]]:
    """Put it where ComfyUI's modules would be; gives the steps that previews were shown for."""
    steps: list[int] = []
    modules: dict[str, dict[str, Any]] = {
        "comfy": {},
        "comfy.model_sampling": {"CONST": Const},
        "comfy.samplers": {"KSAMPLER": KSampler},
        "comfy.sample": {
            "sample_custom": sample_custom,
            "prepare_noise": prepare_noise,
            "fix_empty_latent_channels": lambda model, latent: latent,
        },
        "comfy.utils": {"PROGRESS_BAR_ENABLED": False},
        "latent_preview": {"prepare_callback": lambda model, total: lambda i, x0, x, total: steps.append(i)},
        "comfy_execution": {},
        "comfy_execution.graph_utils": {
            "ExecutionBlocker": type("ExecutionBlocker", (), {"__init__": lambda self, m: None})
        },
    }
    before = {name: sys.modules.get(name) for name in modules}
    for name, entries in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(entries)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    try:
        yield steps
    finally:
        for name, there in before.items():
            if there is None:
                del sys.modules[name]
            else:
                sys.modules[name] = there
