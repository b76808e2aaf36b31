"""Pipelines run as they are: each picture of a mixed batch is the stock pipeline's, whatever goes with it."""

import gc
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from solver import ConsistencySolverScheduler, SampleState, make_plan
from solver.diffusion import FAMILIES, Conditions, PipelineAsItIs, SampleError, family_of
from solver.diffusion.pipeline import as_it_is
from tests import tiny_models, tiny_pipelines
from tests.solver.toys import relative_error

WIDTH, HEIGHT = 32, 48


@dataclass(frozen=True)
class Wish:
    prompt: str = "a lake at night"
    negative: str = ""
    steps: int = 4
    guidance: float = 3.0
    seed: int = 1


WISHES = (
    Wish(),
    Wish(seed=2, negative="rain"),
    Wish("snowy hills behind a boat", steps=7, guidance=5.0, seed=3),
    Wish("boat", steps=5, guidance=1.0, seed=4),
)
STOCK_KINDS = ("stable_diffusion", "stable_diffusion_v", "stable_diffusion_xl", "stable_diffusion_3", "flux")


def built(kind: str, folder: Path) -> Path:
    return (tiny_pipelines if kind in tiny_pipelines.KINDS else tiny_models).build(kind, folder)


def load(source: Path | Any) -> tuple[Any, PipelineAsItIs]:
    """The stock pipeline with our scheduler, and the same as it is."""
    pipe = DiffusionPipeline.from_pretrained(source) if isinstance(source, Path) else source
    pipe.set_progress_bar_config(disable=True)
    family = as_it_is(type(pipe).__name__)
    assert family
    parts = {name: getattr(pipe, name, None) for name in family.needs}
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    model = family.build(parts, pipe.scheduler.config, pipe.config)
    pipe.scheduler = ConsistencySolverScheduler.from_config(pipe.scheduler.config)
    return pipe, model


@pytest.fixture(scope="module", params=[*tiny_pipelines.KINDS, *STOCK_KINDS])
def both(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, PipelineAsItIs]:
    return load(built(request.param, tmp_path_factory.mktemp("as_it_is") / request.param))


@pytest.fixture(scope="module")
def z_image(tmp_path_factory: pytest.TempPathFactory) -> PipelineAsItIs:
    return load(built("z_image", tmp_path_factory.mktemp("z_image") / "z_image"))[1]


def alone(pipe: Any, model: PipelineAsItIs, wish: Wish, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The last latents and the picture of the stock pipeline, from the noise that it draws for the seed."""
    latents: list[torch.Tensor] = []

    def note(pipe: Any, i: int, t: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        latents[:] = [tensors["latents"]]
        return {}

    told = model.arguments(wish.prompt, wish.negative, wish.guidance, WIDTH, HEIGHT, wish.steps)
    told |= {"generator": torch.Generator().manual_seed(wish.seed), "callback_on_step_end": note}
    picture = pipe(**told | options)[0]
    return latents[0], picture


class Batch:
    """Samples that are denoised together as the worker does, and a count of the network's calls."""

    def __init__(self, model: PipelineAsItIs, wishes: Sequence[Wish]) -> None:
        self.calls: list[int] = []
        network = model.network
        counted = network.register_forward_hook(lambda *_: self.calls.append(1))
        self.forget = counted.remove
        self.model, self.wishes = model, wishes
        shape = model.shape_of(WIDTH, HEIGHT)
        plans = [make_plan("consistency", w.steps, model.schedule_at(shape, w.steps)) for w in wishes]
        self.states = [
            SampleState.start(plan, model.draw(w.seed, WIDTH, HEIGHT))
            for plan, w in zip(plans, wishes, strict=True)
        ]
        self.negatives = [model.encode([w.negative], negative=True) for w in wishes]
        self.prompts = [
            model.begin(model.encode([w.prompt]), negative, plan, w.guidance)
            for w, negative, plan in zip(wishes, self.negatives, plans, strict=True)
        ]

    def step(self, which: Sequence[int]) -> None:
        outputs = self.model.denoise(
            torch.stack([self.states[i].model_input() for i in which]),
            torch.tensor([self.states[i].timestep for i in which]),
            Conditions.cat([self.prompts[i] for i in which]),
            Conditions.cat([self.negatives[i] for i in which]),
            torch.tensor([self.wishes[i].guidance for i in which]),
        )
        for i, output in zip(which, outputs, strict=True):
            self.states[i].step(output)

    def unfinished(self) -> list[int]:
        return [i for i, state in enumerate(self.states) if not state.done]

    def finish(self) -> list[torch.Tensor]:
        with torch.inference_mode():
            while unfinished := self.unfinished():
                self.step(unfinished)
        self.forget()
        return [state.x for state in self.states]


def as_states(latents: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if latents.dim() == 3:
        return latents[0].unflatten(0, like.shape[1:]).movedim(-1, 0)
    return latents.reshape(like.shape)


def test_each_picture_of_a_mixed_batch_is_the_stock_pipelines(both: tuple[Any, PipelineAsItIs]) -> None:
    pipe, model = both
    with torch.inference_mode():
        model.decode(
            torch.zeros(1, *model.shape_of(WIDTH, HEIGHT))
        )  # calls the network once, to know its shapes
    batch = Batch(model, WISHES)
    made = batch.finish()
    together = len(batch.calls)
    counting = Batch(model, ())
    for wish, latents in zip(WISHES, made, strict=True):
        expected, picture = alone(pipe, model, wish)
        error = relative_error(latents, as_states(expected, latents))
        assert error < 1e-5
        with torch.inference_mode():
            assert float((model.decode(latents[None]) - picture).abs().max()) < 1e-4
    counting.forget()
    assert (together, len(counting.calls)) in ((7, 20), (14, 35), (14, 40))
    assert relative_error(made[0], made[1]) > 1e-2


@pytest.mark.parametrize("needs", [False, True], ids=["klein", "qwen-image-edit"])
def test_a_picture_to_edit_is_seen(needs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit.calculate_dimensions"
    monkeypatch.setattr(module, lambda area, ratio: (64, 64, None))  # it edits pictures of a megapixel
    torch.manual_seed(0)
    pipe, model = load(
        tiny_pipelines.qwen_image_edit() if needs else built("flux2_klein", tmp_path / "flux2_klein")
    )
    picture = torch.rand(3, 2 * HEIGHT, 2 * WIDTH, generator=torch.Generator().manual_seed(1))
    picture = (picture * 255).round() / 255
    assert model.edits and model.needs_picture == needs
    (shown,) = model.encode_pictures(picture[None])
    without, batch = Batch(model, WISHES[:2]).finish(), Batch(model, WISHES[:2])
    for prompt, negative, wish, state in zip(
        batch.prompts, batch.negatives, WISHES[:2], batch.states, strict=True
    ):
        seen = model.encode([wish.prompt]).with_reference(shown[None])
        prompt.tensors["run"][0] = model.begin(seen, negative, state.plan, wish.guidance).tensors["run"][0]
    for made, plain, wish in zip(batch.finish(), without, WISHES[:2], strict=True):
        levels = (picture * 255).to(torch.uint8).permute(1, 2, 0).numpy()
        expected, _ = alone(pipe, model, wish, image=Image.fromarray(levels))
        assert relative_error(made, as_states(expected, made)) < 1e-5
        assert relative_error(made, plain) > 1e-4


def living() -> int:
    gc.collect()
    return sum(thread.name == "picture" for thread in threading.enumerate())


def test_a_picture_that_nobody_holds_ends_at_once(z_image: PipelineAsItIs) -> None:
    before = living()
    batch = Batch(z_image, WISHES)
    with torch.inference_mode():
        batch.step([0, 1, 2, 3])
    assert living() == before + 4
    del batch.prompts[3], batch.prompts[1]
    assert living() == before + 2
    batch.forget()
    del batch
    assert living() == before


def test_one_that_fails_does_not_touch_the_others(z_image: PipelineAsItIs) -> None:
    expected = Batch(z_image, WISHES).finish()
    batch = Batch(z_image, WISHES)
    broken = replace(WISHES[1], prompt="a broken word")
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        encode = type(z_image.pipe).encode_prompt

        def failing(pipe: Any, prompt: Any, **options: Any) -> Any:
            if prompt == broken.prompt:
                raise KeyError("no such word")
            return encode(pipe, prompt=prompt, **options)

        patch.setattr(type(z_image.pipe), "encode_prompt", failing)
        batch.prompts[1].tensors["run"][0] = None
        batch.prompts[1] = Conditions({**z_image.encode([broken.prompt]).tensors})
        with pytest.raises(SampleError, match=r"sample 1 failed: .*no such word") as error:
            batch.step([0, 1, 2, 3])
        assert error.value.row == 1
        while unfinished := [i for i in batch.unfinished() if i != 1]:
            batch.step(unfinished)
    for i in (0, 2, 3):
        assert relative_error(batch.states[i].x, expected[i]) < 1e-5


def test_what_memory_had_no_room_for_is_tried_again_in_parts(z_image: PipelineAsItIs) -> None:
    expected = Batch(z_image, WISHES).finish()
    batch = Batch(z_image, WISHES)
    most = 3

    def small(network: Any, inputs: Any) -> None:
        if len(inputs[0]) > most:
            raise torch.OutOfMemoryError("out of memory")

    forget = z_image.network.register_forward_pre_hook(small)
    with torch.inference_mode():
        while unfinished := batch.unfinished():
            for i in unfinished:  # as `split_on_oom` does
                with pytest.raises(torch.OutOfMemoryError):
                    batch.step(unfinished if len(unfinished) > 1 else [i, i])
                break
            for i in unfinished:
                batch.step([i])
    forget.remove()
    for made, right in zip((state.x for state in batch.states), expected, strict=True):
        assert relative_error(made, right) < 1e-5


def test_single_steps_need_no_run(z_image: PipelineAsItIs) -> None:
    """As calibration, training and evaluation call it."""
    batch = Batch(z_image, WISHES[:2])
    x, t = torch.stack([state.x for state in batch.states]), torch.tensor([700.0, 300.0])
    prompts, negatives = z_image.encode(["a boat"] * 2), z_image.encode(["", "rain"], negative=True)
    with torch.inference_mode():
        both = z_image.denoise(x, t, prompts, negatives, torch.tensor([3.0, 5.0]))
        each = [
            z_image.denoise(x[i : i + 1], t[i : i + 1], prompts[i : i + 1], negatives[i : i + 1], scale)
            for i, scale in enumerate((torch.tensor([3.0]), torch.tensor([5.0])))
        ]
    assert relative_error(both, torch.cat(each)) < 1e-5


def test_pipelines_for_other_tasks_are_none_of_these() -> None:
    for name in (
        "WanPipeline",
        "FluxFillPipeline",
        "StableDiffusionInpaintPipeline",
        "DiTPipeline",
        "Nothing",
    ):
        with pytest.raises(ValueError, match=f"a {name} is not one of the pipelines known here"):
            family_of(name)
    for name in ("Krea2Pipeline", "QwenImageEditPipeline", "Flux2Pipeline", "SanaPipeline"):
        assert issubclass(family_of(name), PipelineAsItIs)
    assert not any(issubclass(family, PipelineAsItIs) for family in FAMILIES.values())
