"""One picture's run of a diffusers pipeline, one step at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from solver.diffusion.coroutine import Coroutine
from solver.diffusion.merging import Call

if TYPE_CHECKING:
    from solver.diffusion.pipeline import PipelineAsItIs


def shape_of(latents: Tensor, width: int, height: int) -> tuple[int, int, int]:
    """[C, H, W] of a pipeline's latents of one picture: [1, C, H, W], with ones between, or tokens [1, L, C].

    Raises:
        ValueError: anything else.
    """
    sizes = [size for size in latents.shape[1:] if size != 1]
    if latents.dim() > 3 and len(sizes) == 3:
        return sizes[0], sizes[1], sizes[2]
    pixels = math.isqrt(width * height // latents.shape[1]) if latents.dim() == 3 else 0
    if pixels and (width // pixels) * (height // pixels) == latents.shape[1]:
        return latents.shape[2], height // pixels, width // pixels
    raise ValueError(f"its latents have the shape {tuple(latents.shape)}, which is not a picture's")


def as_state(latents: Tensor, shape: Sequence[int]) -> Tensor:
    """A pipeline's latents of one picture as [C, H, W]."""
    if latents.dim() == 3:
        return latents[0].unflatten(0, tuple(shape[1:])).movedim(-1, 0)
    return latents.reshape(tuple(shape))


def as_latents(state: Tensor, like: Tensor) -> Tensor:
    """Undo `as_state`, with the shape and type of `like`."""
    tokens = state.movedim(0, -1) if like.dim() == 3 else state
    return tokens.reshape(like.shape).to(like.device, like.dtype)


def first_of(made: Any) -> Tensor:
    return made[0] if isinstance(made, (tuple, list)) else made


class _Outside:
    """What stands in a pipeline for its scheduler and for its network, and forwards the rest to them."""

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, original: Any) -> None:
        self._original = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def cache_context(self, name: str) -> AbstractContextManager[None]:
        """Nothing is cached between steps: pictures of a batch would share it."""
        return nullcontext()


class Network(_Outside):
    def __init__(self, original: Any, ask: Callable[[Any], Any]) -> None:
        super().__init__(original)
        self._ask = ask

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask(Call(args, kwargs))


class Scheduler(_Outside):
    """A scheduler that keeps to timesteps given before, and leaves the arithmetic to the other side."""

    def __init__(
        self, original: Any, timesteps: Sequence[float], step: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__(original)
        self._step = step
        told = torch.tensor(timesteps, dtype=torch.float64)
        whole = bool((told == told.round()).all()) and not original.schedule.is_flow
        self.timesteps = told.to(torch.int64 if whole else torch.float32)
        self.num_inference_steps = len(told)
        self.mu: float | None = None

    def set_timesteps(
        self, num_inference_steps: Any = None, device: Any = None, timesteps: Any = None, sigmas: Any = None,
        mu: float | None = None,
    ) -> None:  # fmt: skip
        self.timesteps, self.mu = self.timesteps.to(device), mu

    def set_begin_index(self, begin_index: int = 0) -> None: ...

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        return sample

    def step(self, output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True, **_: Any) -> Any:
        after = as_latents(self._step(output, sample), sample)
        if not return_dict:
            return (after,)
        from diffusers.schedulers.scheduling_utils import SchedulerOutput

        return SchedulerOutput(prev_sample=after)


class Run:
    """One picture's run of the pipeline, one step at a time; ends when nobody holds it any more."""

    def __init__(
        self,
        model: PipelineAsItIs,
        told: Mapping[str, Any],
        negative: Mapping[str, Any],
        timesteps: Sequence[float],
        guidance: float,
        decode: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._given: list[Tensor] = []
        reference = told.get("reference")
        given = self._given

        def body(coroutine: Coroutine) -> Any:
            def prepare_latents(*args: Any, **kwargs: Any) -> Any:
                made = model.pipe.prepare_latents(*args, **kwargs)
                start = as_latents(given[0], first_of(made))
                return type(made)((start, *made[1:])) if isinstance(made, (tuple, list)) else start

            def step(output: Tensor, sample: Tensor) -> Tensor:
                return coroutine.ask(as_state(output, given[0].shape))

            scheduler = Scheduler(model.pipe.scheduler, timesteps, step)
            pipe = model.copy_for(scheduler, Network(model.network, coroutine.ask), prepare_latents)
            if decode is not None:
                vars(pipe)["vae"] = _Decoding(model.vae, decode)
            height, width = (edge * model.scale for edge in given[0].shape[1:])
            arguments = model.arguments(
                told["prompt"][0], negative["prompt"][0], guidance, width, height, len(timesteps)
            )
            if reference is not None:
                arguments["image"] = _as_picture(reference[0])
            elif model.needs_picture:
                arguments["image"] = grey(width, height)
            return pipe(**arguments)

        self._coroutine = Coroutine(body, model.device)
        self._output: Tensor | None = None
        self._taken = True

    @property
    def call(self) -> Call | None:
        """The call of the network that it waits for."""
        return question if isinstance(question := self._coroutine.question, Call) else None

    def go_on(self, state: Tensor) -> None:
        """Begin at this state, or go on from it; nothing if the output of the last one was not taken yet."""
        if not self._taken:
            return
        if not self._given:
            self._given.append(state)
        self._taken = False
        self._hear(self._coroutine.send(state))

    def answer(self, output: Any) -> None:
        """Answer its call of the network."""
        self._hear(self._coroutine.send(output))

    def take(self) -> Tensor:
        """The guided output [C, H, W] at the last state."""
        assert self._output is not None
        self._taken = True
        return self._output

    def finish(self, latents: Tensor) -> Tensor:
        """The picture [1, 3, H, W], from 0 to 1, that the pipeline decodes at the end of its steps."""
        self._coroutine.send(latents)
        return self._coroutine.result[0]

    def _hear(self, question: Any) -> None:
        if question is None:
            raise RuntimeError("the pipeline ended before its last step")
        if isinstance(question, Tensor):
            self._output = question

    def __del__(self) -> None:
        self._coroutine.close()


def grey(width: int, height: int) -> Image.Image:
    """A picture for a pipeline that cannot do without one where none matters."""
    return Image.new("RGB", (width, height), "grey")


def _as_picture(levels: Tensor) -> Image.Image:
    array = (levels * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)


class _Decoding(_Outside):
    """An autoencoder that decodes with another decoder."""

    def __init__(self, original: Any, decode: Callable[[Tensor], Tensor]) -> None:
        super().__init__(original)
        self._decode = decode

    def decode(self, latents: Tensor, return_dict: bool = True, **_: Any) -> Any:
        return (self._decode(latents),)
