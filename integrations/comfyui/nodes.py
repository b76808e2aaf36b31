"""The nodes: a sampler with its noise levels, a grid of previews, and the refinement of one of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .sampling import PlanFile, get_sigmas, read_plans, sample_consistency

PLANS = Path(__file__).parent / "plans"
UNIPC = "none (UniPC)"
CATEGORY = "sampling/consistency solver"

Inputs = dict[str, dict[str, tuple[Any, ...]]]


class Previews(NamedTuple):
    """What a grid was made of, so that one of its pictures can be made again.

    Attributes:
        model, positive, negative, cfg, latent, denoise: as given to the grid.
        seeds: one for each picture.
    """

    model: Any
    positive: Any
    negative: Any
    cfg: float
    latent: dict[str, Any]
    denoise: float
    seeds: tuple[int, ...]


def families() -> list[str]:
    """The files of plans, and none."""
    return [UNIPC, *sorted(path.stem for path in PLANS.glob("*.json"))]


def solver_for(model: Any, plans: str, steps: int, denoise: float) -> tuple[Any, torch.Tensor, str]:
    """The sampler and the noise levels for a model, and a line that says whose rows they are.

    Raises:
        ValueError: plans of another model, or steps that it can't have.
    """
    import comfy.model_sampling
    import comfy.samplers

    sampling = model.get_model_object("model_sampling")
    flow = isinstance(sampling, comfy.model_sampling.CONST)
    file = PlanFile("", "", ()) if plans == UNIPC else read_plans(PLANS / f"{plans}.json")
    sigmas = get_sigmas(steps, sampling.sigmas, flow=flow, plans=file.plans, strength=denoise)
    about = _about(file, steps, denoise)
    logging.getLogger(__name__).info(about)
    options = {"plans": file.plans, "flow": flow}
    return comfy.samplers.KSAMPLER(sample_consistency, options), sigmas, about


def _about(file: PlanFile, steps: int, denoise: float) -> str:
    if not file.name:
        return f"{steps} steps of UniPC; no plans were chosen."
    learned = sorted(len(plan.a) for plan in file.plans)
    if steps in learned and denoise == 1:
        return f"{steps} steps of a plan learned for {file.name}. {file.about}".strip()
    have = f"has plans for {', '.join(map(str, learned))} steps" if learned else "has no learned plans"
    if denoise < 1:
        have += ", which start from pure noise"
    return f"{steps} steps of UniPC: {file.name} {have}. {file.about}".strip()


def _sample(given: Previews, plans: str, steps: int) -> tuple[dict[str, Any], str]:
    """One latent for each seed, each from its own noise, so that no picture depends on the others."""
    import comfy.sample
    import comfy.utils
    import latent_preview

    sampler, sigmas, about = solver_for(given.model, plans, steps, given.denoise)
    latent = comfy.sample.fix_empty_latent_channels(given.model, given.latent["samples"][:1])
    noise = torch.cat([comfy.sample.prepare_noise(latent, seed) for seed in given.seeds])
    samples = comfy.sample.sample_custom(
        given.model,
        noise,
        given.cfg,
        sampler,
        sigmas,
        given.positive,
        given.negative,
        latent.repeat(len(given.seeds), *[1] * (latent.dim() - 1)),
        noise_mask=given.latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(given.model, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=given.seeds[0],
    )
    return {**given.latent, "samples": samples}, about


class ConsistencySolverSampler:
    """A sampler and its noise levels, for SamplerCustom and SamplerCustomAdvanced."""

    RETURN_TYPES = ("SAMPLER", "SIGMAS", "STRING")
    RETURN_NAMES = ("sampler", "sigmas", "about")
    FUNCTION = "make"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        steps = {"default": 6, "min": 1, "max": 1000}
        return {"required": {"model": ("MODEL",), "plans": (families(),), "steps": ("INT", steps), **DENOISE}}

    def make(self, model: Any, plans: str, steps: int, denoise: float) -> tuple[Any, torch.Tensor, str]:
        return solver_for(model, plans, steps, denoise)


class PreviewGrid:
    """Several pictures of a prompt in few steps: seeds s, s + 1, …"""

    RETURN_TYPES = ("LATENT", "CONSISTENCY_PREVIEWS", "STRING")
    RETURN_NAMES = ("latent", "previews", "about")
    FUNCTION = "make"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        seed = {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True}
        return {
            "required": {
                "model": ("MODEL",),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent": ("LATENT",),
                "seed": ("INT", seed),
                "count": ("INT", {"default": 4, "min": 1, "max": 16}),
                "plans": (families(),),
                "steps": ("INT", {"default": 6, "min": 4, "max": 8}),
                "cfg": ("FLOAT", {"default": 3.0, "min": 0.0, "max": 100.0, "step": 0.1}),
                **DENOISE,
            }
        }

    def make(
        self,
        model: Any,
        positive: Any,
        negative: Any,
        latent: dict[str, Any],
        seed: int,
        count: int,
        plans: str,
        steps: int,
        cfg: float,
        denoise: float,
    ) -> tuple[dict[str, Any], Previews, str]:
        seeds = tuple((seed + k) % 2**64 for k in range(count))
        previews = Previews(model, positive, negative, cfg, latent, denoise, seeds)
        samples, about = _sample(previews, plans, steps)
        return samples, previews, about


class RefinePicked:
    """The picked preview with all steps, from the same noise; 0 picks none, and nothing is made."""

    RETURN_TYPES = ("LATENT", "STRING")
    RETURN_NAMES = ("latent", "about")
    FUNCTION = "make"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "previews": ("CONSISTENCY_PREVIEWS",),
                "picked": ("INT", {"default": 0, "min": 0, "max": 16}),
                "plans": (families(),),
                "steps": ("INT", {"default": 40, "min": 1, "max": 1000}),
            }
        }

    def make(self, previews: Previews, picked: int, plans: str, steps: int) -> tuple[Any, Any]:
        if picked == 0:
            from comfy_execution.graph_utils import ExecutionBlocker

            return ExecutionBlocker(None), ExecutionBlocker(None)
        if picked > len(previews.seeds):
            raise ValueError(f"There are {len(previews.seeds)} previews; pick one of them, not {picked}.")
        return _sample(previews._replace(seeds=(previews.seeds[picked - 1],)), plans, steps)


DENOISE: dict[str, tuple[Any, ...]] = {
    "denoise": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 1.0, "step": 0.01})
}

NODE_CLASS_MAPPINGS: dict[str, type] = {
    "ConsistencySolverSampler": ConsistencySolverSampler,
    "ConsistencySolverPreviewGrid": PreviewGrid,
    "ConsistencySolverRefinePicked": RefinePicked,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "ConsistencySolverSampler": "ConsistencySolver sampler",
    "ConsistencySolverPreviewGrid": "Preview grid",
    "ConsistencySolverRefinePicked": "Refine picked",
}
