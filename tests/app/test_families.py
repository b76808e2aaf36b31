"""Every family of models loads for real, and the worker makes the stock pipeline's pictures with it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from app.job import Done, RequestError
from app.models import ImageModel, ModelError, load
from app.worker import Worker
from solver import ConsistencySolverScheduler
from solver.diffusion.flux import pack
from tests import tiny_models
from tests.app.conftest import make_job

CPU = torch.device("cpu")


@pytest.fixture(
    scope="module", params=["stable_diffusion_v", "stable_diffusion_xl", "stable_diffusion_3", "flux"]
)
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build(request.param, tmp_path_factory.mktemp("families") / request.param)


@pytest.fixture(scope="module")
def model(folder: Path) -> ImageModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("solver.diffusion.flux.NATIVE", 8)
        return load(folder, CPU)


def test_the_worker_makes_the_stock_pipelines_pictures(folder: Path, model: ImageModel) -> None:
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.scheduler = ConsistencySolverScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    worker = Worker(model)
    try:
        jobs = [
            make_job(model, prompt="snowy hills", steps=4, guidance=3),
            make_job(model, prompt="a lake", steps=6, guidance=1, kind="refine"),
        ]
        made = [list(handle.events())[-1] for handle in worker.submit_all(jobs)]
    finally:
        worker.close()
    for job, done in zip(jobs, made, strict=True):
        assert isinstance(done, Done) and done.picture
        noise = model.diffusion.noise([job.seed])
        expected = pipe(
            prompt=job.prompt,
            guidance_scale=job.guidance,
            num_inference_steps=job.steps,
            height=job.height,
            width=job.width,
            latents=pack(noise) if folder.name == "flux" else noise,
        ).images[0]
        assert done.picture.size == (16, 16)
        assert np.abs(np.asarray(done.picture).astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_what_a_model_cannot_do_is_refused_in_words(model: ImageModel) -> None:
    with pytest.raises(RequestError, match="makes pictures of 16 × 16 pixels"):
        model.facts.plan(make_job(model, width=32))
    if model.schedule.is_flow:
        with pytest.raises(RequestError, match="a flow does not know"):
            model.facts.plan(make_job(model, solver="deis"))


def test_pickles_are_refused(folder: Path, model: ImageModel) -> None:
    weights = next((folder / "vae").glob("*.safetensors"))
    pickle = weights.with_suffix(".bin")
    weights.rename(pickle)
    try:
        with pytest.raises(ModelError, match="pickles, and safetensors are due"):
            load(folder, CPU)
    finally:
        pickle.rename(weights)
