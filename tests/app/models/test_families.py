"""Every family of models loads for real, and the worker makes the stock pipeline's latents and pictures."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from app.jobs.job import Done, Job, RequestError
from app.models import ImageModel, ModelError, load
from app.worker import Worker
from app.worker.costs import Costs
from solver import ConsistencySolverScheduler
from solver.diffusion.flux import pack, unpack
from tests import tiny_models
from tests.conftest import make_job
from tools.load.policies import POLICIES

CPU = torch.device("cpu")
# Large batches cost as much as small ones, so all go together; pictures on the way cost too much.
COSTS = Costs(rows=(1, 2, 4, 8, 16), seconds=(0.05,) * 5, decode_s=1e9)


@pytest.fixture(scope="module", params=tiny_models.KINDS)
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build(request.param, tmp_path_factory.mktemp("families") / request.param)


@pytest.fixture(scope="module")
def model(folder: Path) -> ImageModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("solver.diffusion.flux.NATIVE", 8)
        return load(folder, CPU)


@pytest.fixture
def noting(model: ImageModel) -> Iterator[tuple[Worker, list[torch.Tensor]]]:
    """A worker, and the latents of its finished pictures in the order in which they finish."""
    kept: list[torch.Tensor] = []

    class Noting(ImageModel):
        def pictures(self, latents: torch.Tensor, *, preview: bool = False) -> Any:
            kept.extend(latents)
            return super().pictures(latents, preview=preview)

    worker = Worker(Noting(**vars(model)), POLICIES["step-fifo"], COSTS)
    yield worker, kept
    worker.close()


def stock_latents(pipe: Any, model: ImageModel, job: Job) -> torch.Tensor:
    """What the stock pipeline makes with the same plan's scheduler [C, H, W]."""
    noise = model.diffusion.noise([job.seed])
    flux = type(pipe).__name__.startswith("Flux")
    options: dict[str, Any] = {"negative_prompt": job.negative_prompt or None}
    if flux:
        options = {"max_area": job.width * job.height} if "Kontext" in type(pipe).__name__ else {}
    made = pipe(
        prompt=job.prompt,
        guidance_scale=job.guidance,
        num_inference_steps=job.steps,
        height=job.height,
        width=job.width,
        latents=pack(noise) if flux else noise,
        output_type="latent",
        **options,
    ).images
    return (unpack(made, noise.shape) if flux else made)[0]


def test_the_worker_makes_the_stock_pipelines_latents_in_mixed_company(
    folder: Path, model: ImageModel, noting: tuple[Worker, list[torch.Tensor]]
) -> None:
    """Previews and refinements of other lengths, guidance and words go together, step by step."""
    worker, kept = noting
    jobs = [
        make_job(model, prompt="snowy hills", steps=4, guidance=3, negative_prompt="rain"),
        make_job(model, prompt="a boat", steps=5, guidance=1, seed=2),
        make_job(model, prompt="a lake", steps=9, guidance=5.5, kind="refine"),
        make_job(model, prompt="snowy hills", steps=12, guidance=3, negative_prompt="rain", kind="refine"),
    ]
    if not model.facts.negative_prompts:
        jobs = [replace(job, negative_prompt="") for job in jobs]
    made = [list(handle.events())[-1] for handle in worker.submit_all(jobs)]
    assert worker.ticks == max(job.steps for job in jobs)  # all in every call until they end
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.scheduler = ConsistencySolverScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    for job, latents, done in zip(jobs, kept, made, strict=True):
        expected = stock_latents(pipe, model, job)
        assert torch.linalg.norm(latents - expected) < 1e-4 * torch.linalg.norm(expected)
        assert isinstance(done, Done)
        picture = model.pictures(expected[None])[0]
        assert np.abs(np.asarray(done.picture).astype(int) - np.asarray(picture).astype(int)).max() <= 1


def test_what_a_model_cannot_do_is_refused_in_words(model: ImageModel) -> None:
    with pytest.raises(RequestError, match="makes pictures of 16 × 16 pixels"):
        model.facts.plan(make_job(model, width=32))
    if model.facts.schedule.is_flow:
        with pytest.raises(RequestError, match="a flow does not know"):
            model.facts.plan(make_job(model, solver="deis"))


def test_pickles_are_refused(folder: Path, model: ImageModel) -> None:
    weights = next((folder / "vae").glob("*.safetensors"))
    pickle = weights.with_suffix(".bin")
    weights.rename(pickle)
    try:
        with pytest.raises(ModelError, match="pickles, but safetensors are needed"):
            load(folder, CPU)
    finally:
        pickle.rename(weights)
