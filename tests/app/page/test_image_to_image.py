"""Jobs that start from a picture: what the stock pipelines make, in any company; and editing."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from app.jobs.job import Done, Job, Start, Variation
from app.jobs.request import build_jobs
from app.jobs.uploads import start_from
from app.models import ImageModel, load
from app.server import api
from app.worker import Worker
from solver.diffusion.flux import pack
from tests import tiny_models
from tests.conftest import make_job

CPU = torch.device("cpu")
# By family: the stock pipeline, and the solver of its scheduler.
STOCK = {
    "stable_diffusion": ("StableDiffusionImg2ImgPipeline", "dpm++2m"),
    "stable_diffusion_xl": ("StableDiffusionXLImg2ImgPipeline", "dpm++2m"),
    "stable_diffusion_3": ("StableDiffusion3Img2ImgPipeline", "euler"),
    "flux": ("FluxImg2ImgPipeline", "euler"),
    "flux_kontext": ("FluxKontextPipeline", "euler"),
}


def png(size: tuple[int, int] = (16, 16), seed: int = 3) -> bytes:
    """A picture of coloured noise."""
    width, height = size
    array = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module", params=STOCK)
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build(request.param, tmp_path_factory.mktemp("families") / request.param)


@pytest.fixture(scope="module")
def family(folder: Path) -> ImageModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("solver.diffusion.flux.NATIVE", 8)
        return load(folder, CPU)


@pytest.fixture(scope="module")
def families_worker(family: ImageModel) -> Iterator[Worker]:
    worker = Worker(family)
    yield worker
    worker.close()


def make(worker: Worker, *jobs: Job) -> list[np.ndarray]:
    events = [list(handle.events())[-1] for handle in worker.submit_all(jobs)]
    assert all(isinstance(event, Done) for event in events), events
    return [np.asarray(event.picture).astype(int) for event in events if isinstance(event, Done)]


def stock_picture(folder: Path, model: ImageModel, job: Job) -> np.ndarray:
    """What the stock pipeline makes of the same latents and noise."""
    kind, _ = STOCK[folder.name]
    pipe = getattr(diffusers, kind).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if not model.facts.schedule.is_flow:
        pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
            pipe.scheduler.config, timestep_spacing="trailing"
        )
    assert job.start
    latents = model.encode_starts([job.start.picture], job.width, job.height)[0]
    assert latents is not None
    size: dict[str, Any] = {"height": job.height, "width": job.width}
    options: dict[str, Any] = {
        "strength": job.start.strength,
        "generator": torch.Generator().manual_seed(job.seed),
    }
    if model.facts.edits:
        noise = pack(model.diffusion.noise([job.seed]))
        options = size | {"latents": noise, "max_area": job.height * job.width}
    elif model.facts.schedule.is_flow:
        options |= size | {"sigmas": list(np.linspace(1, 1 / job.steps, job.steps))}
    image = pipe(
        prompt=job.prompt,
        image=latents[None],
        guidance_scale=job.guidance,
        num_inference_steps=job.steps,
        **options,
    ).images[0]
    return np.asarray(image).astype(int)


def test_the_stock_pipelines_picture_whatever_the_company(
    folder: Path, family: ImageModel, families_worker: Worker
) -> None:
    solver = STOCK[folder.name][1]
    one = make_job(family, steps=6, solver=solver, prompt="a lake", start=Start(png(), 0.5))
    two = make_job(family, steps=8, solver=solver, prompt="a boat", seed=9, start=Start(png(seed=4), 0.75))
    noise = make_job(family, steps=5, solver=solver, prompt="a boat", seed=9)
    made = make(families_worker, one, noise, two)
    for job, picture in ((one, made[0]), (two, made[2])):
        assert np.abs(picture - stock_picture(folder, family, job)).max() <= 1
    assert np.abs(made[1] - make(families_worker, noise)[0]).max() <= 1
    assert np.abs(made[1] - made[2]).max() > 3


def test_at_full_strength_nothing_is_left_but_for_an_edit(
    family: ImageModel, families_worker: Worker
) -> None:
    start = Start(png(), 1)
    with_start, without = make_job(family, start=start), make_job(family)
    one, other = make(families_worker, with_start, without)
    assert (np.abs(one - other).max() > 1) == family.facts.edits


def test_programs_are_told_of_a_strength_where_there_is_one(
    family: ImageModel, families_worker: Worker, tmp_path: Path
) -> None:
    jobs = build_jobs(
        "preview",
        family.facts,
        prompt="a lake",
        steps=4,
        guidance=1,
        solver=make_job(family).solver,
        start=start_from(png()),
        strength=0.3,
    )
    assert [job.start and job.start.strength for job in jobs] == [1 if family.facts.edits else 0.3]
    _, (record,) = api._make(families_worker, jobs, tmp_path)
    assert record["strength"] == (None if family.facts.edits else 0.3)


def test_preview_and_final_start_from_the_same_noised_picture(model: ImageModel) -> None:
    start = Start(png((100, 50)), 0.43)
    plans = [model.facts.plan(make_job(model, steps=steps, start=start)) for steps in (4, 6, 40)]
    assert len({(plan.timestep[0], plan.alpha[0], plan.sigma[0]) for plan in plans}) == 1


def test_little_strength_stays_near_the_picture(model: ImageModel, worker: Worker) -> None:
    width, height = model.facts.width, model.facts.height
    data = png((2 * width, 3 * height))
    latents = model.encode_starts([data], width, height)[0]
    assert latents is not None
    # A random network drifts, but the less the shorter its way is.
    jobs = [make_job(model, steps=20, guidance=1, start=Start(data, s)) for s in (0.05, 0.3, 0.9)]
    near = np.asarray(model.pictures(latents[None])[0]).astype(int)
    far = [np.abs(picture - near).mean() for picture in make(worker, *jobs)]
    assert far == sorted(far)


def test_variations_go_together_with_a_start(model: ImageModel, worker: Worker) -> None:
    start = Start(png(), 0.6)
    jobs = [make_job(model, start=start, variation=Variation(5, amount)) for amount in (0, 0.5)]
    same, near = make(worker, *jobs)
    assert np.abs(same - make(worker, make_job(model, start=start))[0]).max() <= 1
    assert np.abs(same - near).max() > 3


def test_the_picture_is_cut_to_the_middle_and_scaled(model: ImageModel) -> None:
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (80, 0, 220, 100))
    buffer = io.BytesIO()
    wide.save(buffer, "PNG")
    edge = model.facts.width
    blue = io.BytesIO()
    Image.new("RGB", (edge, edge), "blue").save(blue, "PNG")
    cut, whole = model.encode_starts([buffer.getvalue(), blue.getvalue()], edge, edge)
    assert cut is not None and whole is not None
    assert torch.allclose(cut, whole, atol=1e-5)


def test_one_after_the_other_where_memory_is_short(
    model: ImageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [png(seed=1), None, png(seed=2), png(seed=1)]
    together = model.encode_starts(files, 64, 64)
    kind, encode, calls = type(model.diffusion), type(model.diffusion).encode_pictures, []

    def short(self: Any, pictures: torch.Tensor) -> torch.Tensor:
        calls.append(len(pictures))
        if len(pictures) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return encode(self, pictures)

    monkeypatch.setattr(kind, "encode_pictures", short)
    apart = model.encode_starts(files, 64, 64)
    assert calls == [2, 1, 1]  # a picture that comes twice is encoded once
    assert apart[1] is None
    for one, other in zip(together, apart, strict=True):
        assert one is other is None or torch.allclose(one, other, atol=1e-5)  # type: ignore[arg-type]
