"""Any text-to-image or editing pipeline of diffusers, run as it is.

A pipeline keeps its own loop, guidance, signs and packing. One coroutine a picture runs it; its scheduler
hands the guided output of each step out and takes the next state in, and its network hands its calls out.
`denoise` lets all pictures of a batch go on until each has made its output, and answers their calls of the
network together, in one call for all that can be merged, each row with its own timestep.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils import _pytree as pytree

from solver.diffusion.conditions import Conditions
from solver.diffusion.coroutine import Abandoned
from solver.diffusion.merging import Call, groups, merge, split
from solver.diffusion.model import GuidanceKind, LatentDiffusion
from solver.diffusion.run import Network, Run, Scheduler, as_state, first_of, grey, shape_of
from solver.diffusion.text import TOKENIZING
from solver.memory import is_out_of_memory
from solver.plan import Plan
from solver.schedule import MU_RULES, NoiseSchedule, shift_for

# What a pipeline must take, and what those for other tasks than text to image or editing take.
TAKES = ("prompt", "num_inference_steps", "generator", "latents", "output_type", "height", "width")
TAKES_NOT = ("num_frames", "mask_image", "control_image", "strength", "ip_adapter_scale")
# Components that are left out: pictures are checked elsewhere, and nobody gives pictures as prompts.
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
# Edge of pictures in pixels where neither pipeline nor network says.
USUAL_EDGE = 1024
REMEMBERED_PROMPTS = 64
# Steps of which a pipeline's shift is compared with the one computed here.
PROBED_STEPS = 7


class SampleError(RuntimeError):
    """One sample of a batch failed; the others can be denoised without it.

    Attributes:
        row: of the sample in its batch.
    """

    def __init__(self, row: int, cause: BaseException) -> None:
        super().__init__(f"sample {row} failed: {cause}")
        self.row, self.__cause__ = row, cause


@dataclass(frozen=True, eq=False)
class PipelineAsItIs(LatentDiffusion):
    """A diffusers pipeline run as it is. Conditions: prompt and run, lists of B, and of pipelines that edit
    reference [B, 3, H, W], pictures from 0 to 1.

    States are latents in the pipeline's own scaling, as [C, H, W] also where it keeps them as tokens.
    """

    pipeline: ClassVar[Any]
    patch = 2

    pixels: int = 8
    packed: bool = False

    @classmethod
    def build(
        cls, parts: Mapping[str, Any], scheduler_config: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> PipelineAsItIs:
        """See `LatentDiffusion`.

        Raises:
            ValueError: latents that are not a picture's, or noise levels that are shifted in an unknown way.
        """
        model = cls((0, 0, 0), scheduler_config, parts, settings)
        edge = model.native_edge()
        made, mu = model._probed(edge, edge, PROBED_STEPS)
        shape, packed = shape_of(made, edge, edge), made.dim() == 3
        model = replace(model, latent_shape=shape, pixels=edge // shape[1], packed=packed)
        if mu is None or not scheduler_config.get("use_dynamic_shifting"):
            return model
        half = edge // 2 // model.multiple * model.multiple
        asked = {edge: mu, half: model._probed(half, half, PROBED_STEPS)[1] or 0.0}
        for rule in (None, *MU_RULES, mu):
            config = {**scheduler_config} | ({"mu_rule": rule} if rule else {})
            shifts = {size: shift_for(config, (size // model.multiple) ** 2, PROBED_STEPS) for size in asked}
            if all(math.isclose(shifts[size] or 0.0, asked[size], rel_tol=1e-6) for size in asked):
                return replace(model, scheduler_config=config)
        raise ValueError("its noise levels are shifted with the size in a way that is not known here")

    @cached_property
    def pipe(self) -> Any:
        """The pipeline, which each run copies."""
        from solver.scheduler import ConsistencySolverScheduler

        expected, optional = self.pipeline._get_signature_keys(self.pipeline)
        left_out = {name: None for name in (*LEFT_OUT, *self.may_lack) if name in (*expected, *optional)}
        told = {name: self.settings[name] for name in optional if name in self.settings}
        told = {
            name: value
            for name, value in told.items()
            if not isinstance(value, (list, tuple)) or None not in value
        }
        if "requires_safety_checker" in optional:
            told["requires_safety_checker"] = False
        config = {key: value for key, value in self.scheduler_config.items() if key != "mu_rule"}
        scheduler = ConsistencySolverScheduler.from_config(config)
        pipe = self.pipeline(**{**told, **left_out, **self.parts, "scheduler": scheduler})
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def native_edge(self) -> int:
        """Edge in pixels of the pictures that it was made for."""
        size = getattr(self.pipe, "default_sample_size", None)
        if isinstance(size, int):
            return size * self.pipe.vae_scale_factor
        default = inspect.signature(self.pipeline.__call__).parameters["height"].default
        return default if isinstance(default, int) else USUAL_EDGE

    @cached_property
    def _remembered(self) -> OrderedDict[Any, Any]:
        """What `encode_prompt` made of recent prompts."""
        return OrderedDict()

    @cached_property
    def _draws(self) -> dict[tuple[int, int], Callable[[int], Tensor]]:
        """By size in pixels, what draws a pipeline's noise for a seed."""
        return {}

    @cached_property
    def _output_shapes(self) -> dict[Any, Any]:
        """By the shapes of a call of the network, an output of zeros."""
        return {}

    @cached_property
    def _call_parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.pipeline.__call__).parameters

    @property
    def guidance_kind(self) -> GuidanceKind:
        """See `LatentDiffusion`."""
        if getattr(self.network.config, "guidance_embeds", False):
            return "embedded"
        return "none" if self.settings.get("is_distilled") else "classifier-free"

    @property
    def reads_negative_prompts(self) -> bool:
        """See `LatentDiffusion`."""
        return self.guidance_kind == "classifier-free" and "negative_prompt" in self._call_parameters

    @cached_property
    def unguided(self) -> float:
        """See `LatentDiffusion`: 0 for those whose scale is added to the prompt's own output."""
        probe = copy.copy(self.pipe)
        probe._guidance_scale = 1.0
        return 0.0 if getattr(probe, "do_classifier_free_guidance", False) else 1.0

    @property
    def tokenizer(self) -> Any:
        """See `LatentDiffusion`."""
        names = sorted((name for name in self.parts if name.startswith("tokenizer")), reverse=True)
        return self.parts[names[0]] if names else self.parts["processor"].tokenizer

    @property
    def max_prompt_tokens(self) -> int:
        """See `LatentDiffusion`; what a template around the prompt takes is not counted."""
        longest = self._call_parameters.get("max_sequence_length")
        return int(longest.default) if longest else min(77, self.tokenizer.model_max_length)

    @property
    def scale(self) -> int:
        """See `LatentDiffusion`; of tokens, the pixels along one."""
        return self.pixels

    @property
    def multiple(self) -> int:
        """See `LatentDiffusion`: networks take two by two latents as a token."""
        return self.pixels if self.packed else 2 * self.pixels

    @cached_property
    def needs_picture(self) -> bool:
        """Whether it cannot draw without a picture to edit."""
        if self.edits:
            try:
                self._probed(self.native_edge(), self.native_edge(), 1, picture=False)
            except Exception:
                return True
        return False

    def schedule_at(self, latent_shape: Sequence[int], steps: int = 50) -> NoiseSchedule:
        """See `LatentDiffusion`."""
        _, height, width = latent_shape
        tokens = height * width * self.scale**2 // self.multiple**2
        mu = shift_for(self.scheduler_config, tokens, steps)
        return NoiseSchedule.from_config(self.scheduler_config, mu=mu)

    def _encode(self, prompts: Sequence[str], negative: bool) -> Conditions:
        return Conditions({"prompt": list(prompts), "run": [None] * len(prompts)})

    def draw(self, seed: int, width: int, height: int) -> Tensor:
        """See `LatentDiffusion`: the noise that the pipeline draws from a generator with this seed."""
        if (width, height) not in self._draws:
            self._probed(width, height, 1)
        with torch.inference_mode():
            return self._draws[width, height](seed)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """See `LatentDiffusion`."""
        _, height, width = self.latent_shape
        drawn = [self.draw(seed, width * self.scale, height * self.scale) for seed in seeds]
        return torch.stack(drawn).to(self.device)

    def begin(self, prompt: Conditions, negative: Conditions, plan: Plan, guidance: float) -> Conditions:
        """See `LatentDiffusion`: gives the sample a run of the pipeline."""
        run = Run(self, prompt.tensors, negative.tensors, plan.timestep, guidance)
        return Conditions({**prompt.tensors, "run": [run]})

    def denoise(
        self, x: Tensor, timesteps: Tensor, prompts: Conditions, negatives: Conditions, guidance: Tensor
    ) -> Tensor:
        """See `LatentDiffusion`. After an error the same call, or parts of it, may be tried again.

        Raises:
            SampleError: a pipeline failed.
        """
        runs = []
        for i, run in enumerate(prompts.tensors["run"]):
            one, t, scale = slice(i, i + 1), [float(timesteps[i])], float(guidance[i])
            runs.append(run or Run(self, prompts[one].tensors, negatives[one].tensors, t, scale))
        for row, (run, state) in enumerate(zip(runs, x, strict=True)):
            with _failing(row):
                run.go_on(state)
        while waiting := [(row, run) for row, run in enumerate(runs) if run.call]:
            calls = [call for _, run in waiting if (call := run.call)]
            for group in groups(calls):
                output = self._answered([calls[i] for i in group], [waiting[i][0] for i in group])
                for i, part in zip(group, output, strict=True):
                    with _failing(waiting[i][0]):
                        waiting[i][1].answer(part)
        return torch.stack([run.take() for run in runs])

    def _answered(self, calls: Sequence[Call], rows: Sequence[int]) -> list[Any]:
        """The network's outputs for calls that can be merged; one by one where that fails."""
        try:
            merged = merge(calls)
            return split(self.network(*merged.args, **merged.kwargs), [call.rows for call in calls])
        except Exception as error:
            if is_out_of_memory(error):
                raise
            if len(calls) == 1:
                raise SampleError(rows[0], error) from error
        return [self._answered([call], [row])[0] for call, row in zip(calls, rows, strict=True)]

    def decode(self, latents: Tensor) -> Tensor:
        """See `LatentDiffusion`: with the pipeline's own code, which runs to its end on made-up outputs."""
        return torch.cat([self._decoded(each, None) for each in latents])

    def decode_with(self, decode: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
        """Decode latents [B, C, H, W] with another decoder of what the pipeline gives its autoencoder."""
        return torch.cat([self._decoded(each, decode) for each in latents])

    def _decoded(self, latents: Tensor, decode: Callable[[Tensor], Tensor] | None) -> Tensor:
        run = Run(self, {"prompt": [""]}, {"prompt": [""]}, [1.0], self.unguided, decode)
        run.go_on(latents)
        while run.call is not None:
            key = _shapes(run.call)
            if key not in self._output_shapes:
                output = self.network(*run.call.args, **run.call.kwargs)
                self._output_shapes[key] = pytree.tree_map_only(Tensor, torch.zeros_like, output)
            run.answer(self._output_shapes[key])
        return run.finish(latents)

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """The pictures as they are: a pipeline that edits encodes them itself."""
        return pictures

    def copy_for(self, scheduler: Any, network: Any, prepare_latents: Callable[..., Any]) -> Any:
        """The pipeline with these, and with prompts that are remembered."""
        pipe = copy.copy(self.pipe)
        vars(pipe).update(
            {
                "scheduler": scheduler,
                self.network_name: network,
                "prepare_latents": prepare_latents,
                "encode_prompt": self._encode_prompt,
            }
        )
        return pipe

    def _encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        key = _key((args, kwargs))
        with TOKENIZING:  # which also guards what is remembered, since decoding may have a thread of its own
            if key is None:
                return self.pipe.encode_prompt(*args, **kwargs)
            if key not in self._remembered:
                self._remembered[key] = self.pipe.encode_prompt(*args, **kwargs)
                while len(self._remembered) > REMEMBERED_PROMPTS:
                    self._remembered.popitem(last=False)
            self._remembered.move_to_end(key)
            return self._remembered[key]

    @torch.inference_mode()
    def _probed(
        self, width: int, height: int, steps: int, picture: bool = True
    ) -> tuple[Tensor, float | None]:
        """The latents that the pipeline prepares for a size, and the shift that it asks for."""
        prepared: list[Any] = []

        def prepare_latents(*args: Any, **kwargs: Any) -> Any:
            prepared[:] = [made := self.pipe.prepare_latents(*args, **kwargs), args, kwargs]
            return made

        def stop(*_: Any) -> Any:
            raise Abandoned

        scheduler = Scheduler(self.pipe.scheduler, [999.0], stop)
        pipe = self.copy_for(scheduler, Network(self.network, stop), prepare_latents)
        told = self.arguments("", "", self.unguided, width, height, steps)
        if picture and self.needs_picture:
            told["image"] = grey(width, height)
        with suppress(Abandoned):
            pipe(**told)
        made, args, kwargs = prepared
        bound = inspect.signature(self.pipe.prepare_latents).bind(*args, **kwargs)

        def draw(seed: int) -> Tensor:
            changes = {"generator": torch.Generator().manual_seed(seed), "dtype": torch.float32}
            bound.arguments.update(
                {name: value for name, value in changes.items() if name in bound.arguments}
            )
            drawn = first_of(self.pipe.prepare_latents(*bound.args, **bound.kwargs)).float()
            return as_state(drawn, shape_of(drawn, width, height))

        self._draws[width, height] = draw
        return first_of(made), scheduler.mu

    def arguments(
        self, prompt: str, negative: str, guidance: float, width: int, height: int, steps: int
    ) -> dict[str, Any]:
        """What to call the pipeline with for one picture."""
        takes = self._call_parameters
        scale = "guidance_scale"
        if self.guidance_kind == "classifier-free" and "true_cfg_scale" in takes:
            scale = "true_cfg_scale"
        told: dict[str, Any] = {
            "prompt": prompt,
            "width": width,
            "height": height,
            "num_inference_steps": steps,
        }
        if scale in takes:
            told[scale] = guidance
        if self.reads_negative_prompts:
            told["negative_prompt"] = negative if guidance > self.unguided else None
        if "max_area" in takes:
            told["max_area"] = width * height
        return told | {
            "generator": torch.Generator().manual_seed(0),
            "output_type": "pt",
            "return_dict": False,
        }


def _key(arguments: Any) -> tuple[Any, ...] | None:
    """Arguments as a key to remember their result by; None where one is neither plain nor a picture."""
    leaves = pytree.tree_leaves(arguments)
    if not all(isinstance(leaf, _PLAIN) for leaf in leaves):
        return None
    shown = tuple((leaf.size, leaf.tobytes()) if isinstance(leaf, Image.Image) else leaf for leaf in leaves)
    return shown, str(pytree.tree_structure(arguments))


_PLAIN = (str, int, float, bool, type(None), torch.device, torch.dtype, Image.Image)


def _shapes(call: Call) -> Any:
    leaves = pytree.tree_leaves((call.args, dict(call.kwargs)))
    return tuple(leaf.shape if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves)


@contextmanager
def _failing(row: int) -> Iterator[None]:
    """Turn an error within into that of a row."""
    try:
        yield
    except Exception as error:
        raise SampleError(row, error) from error


@cache
def as_it_is(name: str) -> type[PipelineAsItIs] | None:
    """The family of a diffusers pipeline that can be run as it is, by its name; None if it cannot."""
    import diffusers

    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        return None
    pipeline: Any = found
    takes = inspect.signature(pipeline.__call__).parameters
    parts, _ = pipeline._get_signature_keys(pipeline)
    network = next((part for part in ("transformer", "unet") if part in parts), None)
    methods = all(hasattr(pipeline, method) for method in ("prepare_latents", "encode_prompt"))
    if not network or "vae" not in parts or not methods:
        return None
    if not set(TAKES) <= takes.keys() or set(TAKES_NOT) & takes.keys():
        return None
    lacking = tuple(part for part in pipeline._optional_components if part not in LEFT_OUT)
    needs = tuple(part for part in (*parts, *lacking) if part not in ("scheduler", *LEFT_OUT))
    return type(
        name,
        (PipelineAsItIs,),
        {
            "pipeline": pipeline,
            "network_name": network,
            "needs": tuple(dict.fromkeys(needs)),
            "may_lack": lacking,
            "edits": "image" in takes,
        },
    )
