"""Pipelines that run as they are, in the worker: its promises hold for them as for the families."""

import gc
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline
from safetensors.torch import load_file, save_file

from app.catalogue import find
from app.jobs.job import Cancelled, Done, Failed, Job, RequestError
from app.models import Choice, ImageModel, load, open_model
from app.models.model import PreviewDecoder
from app.worker import Worker
from app.worker.costs import Costs
from solver import ConsistencySolverScheduler
from solver.diffusion import PipelineAsItIs
from tests import tiny_pipelines
from tests.conftest import PATIENCE_S, make_job
from tools.load.policies import POLICIES

EDGE = 32
# Large batches cost as much as small ones, so all go together.
COSTS = Costs(rows=(1, 2, 4, 8, 16), seconds=(0.05,) * 5, decode_s=1e9)


@pytest.fixture(scope="module", params=["z_image", "flux2_klein"])
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.build(request.param, tmp_path_factory.mktemp("as_it_is") / request.param)


@pytest.fixture(scope="module")
def model(folder: Path) -> ImageModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PipelineAsItIs, "native_edge", lambda self: EDGE)
        return load(folder, torch.device("cpu"))


@pytest.fixture
def worker(model: ImageModel) -> Iterator[Worker]:
    worker = Worker(model, POLICIES["step-fifo"], COSTS)
    yield worker
    worker.close()


def jobs_of(model: ImageModel) -> list[Job]:
    jobs = [
        make_job(model, prompt="snowy hills", steps=4, guidance=3, negative_prompt="rain"),
        make_job(model, prompt="a boat", steps=5, guidance=1, seed=2),
        make_job(model, prompt="a lake", steps=9, guidance=5.5, kind="refine"),
    ]
    return jobs if model.facts.negative_prompts else [replace(job, negative_prompt="") for job in jobs]


def ends(worker: Worker, jobs: list[Job]) -> list[Any]:
    return [list(handle.events())[-1] for handle in worker.submit_all(jobs)]


def test_pictures_in_mixed_company_are_those_of_the_stock_pipeline(
    folder: Path, model: ImageModel, worker: Worker
) -> None:
    """Seeds, too: a seed is the noise that the pipeline draws for it."""
    jobs = jobs_of(model)
    made = ends(worker, jobs)
    assert worker.ticks == max(job.steps for job in jobs)
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.scheduler = ConsistencySolverScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    for job, done in zip(jobs, made, strict=True):
        assert isinstance(done, Done)
        told = {"negative_prompt": job.negative_prompt} if model.facts.negative_prompts else {}
        (picture,) = pipe(
            prompt=job.prompt, width=EDGE, height=EDGE, num_inference_steps=job.steps,
            guidance_scale=job.guidance, generator=torch.Generator().manual_seed(job.seed), **told,
        ).images  # fmt: skip
        assert np.abs(np.asarray(done.picture).astype(int) - np.asarray(picture)).max() <= 1


def test_a_refinement_is_its_preview_from_the_same_noise(model: ImageModel, worker: Worker) -> None:
    one, again = make_job(model, steps=6), make_job(model, steps=6, kind="speculative")
    handles = worker.submit_all([one]), worker.submit_all([again])
    worker.promote(handles[1][0])
    preview, final = (list(handle.events())[-1] for (handle,) in handles)
    assert isinstance(preview, Done) and isinstance(final, Done)
    assert np.array_equal(np.asarray(preview.picture), np.asarray(final.picture))


def runs() -> set[threading.Thread]:
    """The threads of all runs that have not ended."""
    return {thread for thread in threading.enumerate() if thread.name == "picture"}


def test_cancelling_takes_effect_at_the_next_step_and_ends_the_run(model: ImageModel, worker: Worker) -> None:
    before = runs()
    handles = worker.submit_all([make_job(model, steps=100, seed=i) for i in (1, 2)])
    events = handles[0].events()
    while type(next(events)).__name__ != "Step":
        pass
    for handle in handles:
        handle.cancel()
        assert isinstance(list(handle.events())[-1], Cancelled)
    assert isinstance(ends(worker, [make_job(model)])[0], Done)
    worker.close()
    deadline = time.monotonic() + PATIENCE_S
    while runs() - before and time.monotonic() < deadline:
        gc.collect()
    assert not runs() - before


def test_one_picture_that_fails_leaves_the_others_alone(
    model: ImageModel, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_of(model)
    expected = [np.asarray(done.picture) for done in ends(worker, jobs)]
    pipe: Any = model.diffusion.pipe  # type: ignore[attr-defined]
    encode = type(pipe).encode_prompt

    def failing(pipe: Any, prompt: Any, *args: Any, **options: Any) -> Any:
        if prompt == "a broken word":
            raise KeyError("no such word")
        return encode(pipe, prompt, *args, **options)

    monkeypatch.setattr(type(pipe), "encode_prompt", failing)
    *made, failed = ends(worker, [*jobs, make_job(model, prompt="a broken word", steps=6)])
    assert isinstance(failed, Failed) and worker.healthy
    for done, picture in zip(made, expected, strict=True):
        assert np.abs(np.asarray(done.picture).astype(int) - picture).max() <= 1


def test_what_it_cannot_do_is_refused_in_words(model: ImageModel, worker: Worker) -> None:
    with pytest.raises(RequestError, match="makes pictures of 32 × 32 pixels"):
        worker.submit(make_job(model, width=64))
    with pytest.raises(RequestError, match="a flow does not know"):
        worker.submit(make_job(model, solver="deis"))


def test_a_small_decoder_draws_what_the_pipeline_gives_its_autoencoder(model: ImageModel) -> None:
    diffusion = model.diffusion
    assert isinstance(diffusion, PipelineAsItIs)
    widths, blocks = (4,) * 4, (1,) * 4
    tiny = AutoencoderTiny(
        latent_channels=4, encoder_block_out_channels=widths, decoder_block_out_channels=widths,
        num_encoder_blocks=blocks, num_decoder_blocks=blocks,
    )  # fmt: skip
    decoder = PreviewDecoder("tiny", tiny.eval(), diffusion)
    if not hasattr(diffusion.vae.config, "scaling_factor"):
        return
    latents = diffusion.draw(1, EDGE, EDGE)[None]
    with torch.inference_mode():
        expected = (tiny.decode(latents).sample / 2 + 0.5).clamp(0, 1)
        assert float((decoder.decode(latents) - expected).abs().max()) < 1e-4


def test_a_transformer_alone_takes_the_rest_from_its_configs(folder: Path, tmp_path: Path) -> None:
    """Z-Image as one file with its authors' names, as people download it."""
    if folder.name != "z_image":
        return
    names = {"all_final_layer.2-1.": "final_layer.", "all_x_embedder.2-1.": "x_embedder.",
             ".attention.to_out.0.": ".attention.out.", ".attention.norm_k.": ".attention.k_norm.",
             ".attention.norm_q.": ".attention.q_norm."}  # fmt: skip
    tensors: dict[str, torch.Tensor] = {}
    ours = load_file(next((folder / "transformer").glob("*.safetensors")))
    for name, tensor in ours.items():
        called = name
        for there, here in names.items():
            called = called.replace(there, here)
        if ".to_q." in called:
            parts = [ours[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
            called, tensor = called.replace("to_q", "qkv"), torch.cat(parts)
        if ".to_k." not in called and ".to_v." not in called:
            tensors[f"model.diffusion_model.{called}"] = tensor
    file = tmp_path / "mine.safetensors"
    save_file(tensors, file)
    found = find(str(file), configs=folder)
    assert found.entry and found.entry.name == "z-image-turbo" and set(found.rest) == {"text_encoder", "vae"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PipelineAsItIs, "native_edge", lambda self: EDGE)
        one = open_model(Choice(str(file), "cpu", configs=folder))
    assert (one.facts.guidance, one.facts.full_steps, one.facts.guidance_limits[0]) == (0.0, 8, 0.0)
    for name, tensor in one.diffusion.network.state_dict().items():
        torch.testing.assert_close(tensor, ours[name])
