"""The scheduler as one file, in the form of diffusers' own tests of schedulers; needs nothing but diffusers.

What diffusers asks of every scheduler comes first, then what this one does.
"""

import inspect
import tempfile
import unittest
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.utils import DummyObject

from integrations.diffusers.scheduling_consistency_solver import ConsistencySolverScheduler

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning"),  # diffusers' UniPC
]


def output_at(sample: torch.Tensor, t: Any) -> torch.Tensor:
    """A network's stand-in, different at every timestep."""
    t = torch.as_tensor(t, dtype=torch.float32)
    return torch.tanh(sample + t / 700) - 0.2 * torch.cos(t / 90)


class ConsistencySolverSchedulerTest(unittest.TestCase):
    steps: ClassVar[int] = 25

    def config(self, **kwargs: Any) -> dict[str, Any]:
        betas = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
        return {"num_train_timesteps": 1000, **betas, **kwargs}

    @property
    def sample(self) -> torch.Tensor:
        return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def run_loop(self, scheduler: Any, steps: int | None = None, **timesteps: Any) -> torch.Tensor:
        scheduler.set_timesteps(steps, **timesteps)
        sample = self.sample
        for t in scheduler.timesteps:
            residual = output_at(scheduler.scale_model_input(sample, t), t)
            sample = scheduler.step(residual, t, sample).prev_sample
        return sample

    def check_saved_and_loaded(self, steps: int = 25, **config: Any) -> None:
        scheduler = ConsistencySolverScheduler(**self.config(**config))
        with tempfile.TemporaryDirectory() as folder:
            scheduler.save_pretrained(folder)
            loaded = ConsistencySolverScheduler.from_pretrained(folder)
        for key, value in dict(scheduler.config).items():
            if key != "_use_default_values":
                assert loaded.config[key] == value or np.array_equal(loaded.config[key], value)
        assert torch.equal(self.run_loop(scheduler, steps), self.run_loop(loaded, steps))

    def test_from_save_pretrained(self) -> None:
        self.check_saved_and_loaded()

    def test_timesteps(self) -> None:
        for timesteps in (25, 50, 100, 999, 1000):
            self.check_saved_and_loaded(num_train_timesteps=timesteps)

    def test_betas_and_schedules(self) -> None:
        for beta_start, beta_end in ((0.0001, 0.002), (0.001, 0.02), (0.0001, 0.05)):
            self.check_saved_and_loaded(beta_start=beta_start, beta_end=beta_end)
        with pytest.raises(ValueError, match="leave no signal long before the last timestep"):
            ConsistencySolverScheduler(**self.config(beta_start=0.01, beta_end=0.2))
        for schedule in ("linear", "scaled_linear", "squaredcos_cap_v2"):
            self.check_saved_and_loaded(beta_schedule=schedule)
        self.check_saved_and_loaded(rescale_betas_zero_snr=True, prediction_type="v_prediction")

    def test_prediction_types(self) -> None:
        for prediction_type in ("epsilon", "v_prediction", "sample", "flow_prediction"):
            self.check_saved_and_loaded(prediction_type=prediction_type)
        with pytest.raises(ValueError, match="must be one of epsilon, sample"):
            ConsistencySolverScheduler(prediction_type="noise")

    def test_inference_steps(self) -> None:
        for steps in (1, 2, 3, 10, 50, 1000):
            self.check_saved_and_loaded(steps)
        scheduler = ConsistencySolverScheduler()
        for steps in (0, 1001):
            with pytest.raises(ValueError, match="must be 1 to 1000"):
                scheduler.set_timesteps(steps)

    def test_trained_betas(self) -> None:
        scheduler = ConsistencySolverScheduler(**self.config(trained_betas=np.array([0.1, 0.3])))
        with tempfile.TemporaryDirectory() as folder:
            scheduler.save_pretrained(folder)
            loaded = ConsistencySolverScheduler.from_pretrained(folder)
        assert scheduler.betas.tolist() == loaded.betas.tolist()

    def test_compatibles(self) -> None:
        scheduler = ConsistencySolverScheduler(**self.config())
        assert len(scheduler.compatibles) > 10
        for other in scheduler.compatibles:
            if isinstance(other, DummyObject):  # its optional library is not installed
                continue
            back = ConsistencySolverScheduler.from_config(other.from_config(scheduler.config).config)
            ours = {key: value for key, value in back.config.items() if key in scheduler.config}
            if other is not ConsistencySolverScheduler and "FlowMatch" not in other.__name__:
                assert ours == dict(scheduler.config)

    def test_step_shape_and_outputs(self) -> None:
        scheduler = ConsistencySolverScheduler(**self.config())
        scheduler.set_timesteps(self.steps)
        t, sample = scheduler.timesteps[0], self.sample
        output = scheduler.step(0.1 * sample, t, sample, generator=torch.manual_seed(0))
        scheduler.set_timesteps(self.steps)
        values = scheduler.step(0.1 * sample, t, sample, return_dict=False)
        assert all(torch.equal(one, other) for one, other in zip(values, output.values(), strict=True))
        assert output.prev_sample.shape == output.pred_original_sample.shape == sample.shape
        assert values[1].dtype == sample.dtype

    def test_public_api(self) -> None:
        scheduler = ConsistencySolverScheduler(**self.config())
        assert scheduler.init_noise_sigma == 1 and scheduler.order == 1 and len(scheduler) == 1000
        assert torch.equal(scheduler.scale_model_input(self.sample, 0.0), self.sample)
        assert {"sigmas", "timesteps", "mu"} <= inspect.signature(scheduler.set_timesteps).parameters.keys()
        assert (
            not scheduler._deprecated_kwargs
            and "kwargs" not in inspect.signature(ConsistencySolverScheduler.__init__).parameters
        )
        with pytest.raises(ValueError, match="run 'set_timesteps'"):
            scheduler.step(self.sample, 999, self.sample)

    def test_add_noise_and_velocity(self) -> None:
        scheduler = ConsistencySolverScheduler(**self.config())
        scheduler.set_timesteps(self.steps)
        noise = torch.randn(self.sample.shape, generator=torch.Generator().manual_seed(1))
        t = scheduler.timesteps[[5, 5, 6, 7]]
        alpha = scheduler.alphas_cumprod[t].sqrt()[:, None, None, None]
        sigma = (1 - scheduler.alphas_cumprod[t]).sqrt()[:, None, None, None]
        noised = scheduler.add_noise(self.sample, noise, t)
        assert torch.allclose(noised, alpha * self.sample + sigma * noise, atol=1e-6)
        velocity = scheduler.get_velocity(self.sample, noise, t)
        assert torch.allclose(velocity, alpha * noise - sigma * self.sample, atol=1e-6)
        flow = ConsistencySolverScheduler(prediction_type="flow_prediction")
        assert torch.equal(flow.get_velocity(self.sample, noise, t), noise - self.sample)

    def test_pred_original_sample(self) -> None:
        """A network that knows the picture has it predicted at every step."""
        noise = torch.randn(self.sample.shape, generator=torch.Generator().manual_seed(1))
        for prediction_type in ("epsilon", "v_prediction", "sample", "flow_prediction"):
            scheduler = ConsistencySolverScheduler(**self.config(prediction_type=prediction_type))
            scheduler.set_timesteps(4)
            sample = scheduler.add_noise(self.sample, noise, scheduler.timesteps[:1])
            for t in scheduler.timesteps:
                velocity = scheduler.get_velocity(self.sample, noise, t[None])
                known = {"epsilon": noise, "sample": self.sample}.get(prediction_type, velocity)
                output = scheduler.step(known, t, sample)
                assert torch.allclose(output.pred_original_sample, self.sample, atol=2e-3)
                sample = output.prev_sample
            assert torch.allclose(sample, self.sample, atol=1e-4)

    def test_half_precision_loses_nothing_between_steps(self) -> None:
        scheduler = ConsistencySolverScheduler(**self.config())

        def run(dtype: torch.dtype) -> torch.Tensor:
            scheduler.set_timesteps(40)
            sample = self.sample.half().to(dtype)
            for i, t in enumerate(scheduler.timesteps):
                residual = torch.full_like(sample, 0.25 * (i % 3))
                sample = scheduler.step(residual.float(), t, sample).prev_sample
            assert sample.dtype == dtype
            return sample

        assert torch.equal(run(torch.float16), run(torch.float32).half())

    def test_image_to_image(self) -> None:
        """The rows from a begin index on need no outputs from before, and take timesteps for it too."""
        scheduler = ConsistencySolverScheduler(**self.config())
        results = []
        for begin in (True, False):
            scheduler.set_timesteps(10)
            if begin:
                scheduler.set_begin_index(4)
            sample = self.sample
            for t in scheduler.timesteps[4:]:
                sample = scheduler.step(output_at(sample, t), t, sample).prev_sample
            assert scheduler.step_index == 10
            results.append(sample)
        scheduler.set_timesteps(timesteps=scheduler.timesteps[4:].tolist())
        sample = self.sample
        for t in scheduler.timesteps:
            sample = scheduler.step(output_at(sample, t), t, sample).prev_sample
        assert torch.equal(results[0], results[1]) and torch.allclose(results[0], sample, atol=1e-6)

    def test_untrained_it_is_unipc(self) -> None:
        options = {"solver_order": 2, "solver_type": "bh2", "timestep_spacing": "trailing"}
        theirs = UniPCMultistepScheduler(**self.config(**options), final_sigmas_type="zero")
        ours = ConsistencySolverScheduler.from_config(theirs.config)
        for steps in (4, 9, 20):
            assert torch.allclose(self.run_loop(ours, steps), self.run_loop(theirs, steps), atol=3e-4)
            assert torch.equal(ours.timesteps, theirs.timesteps)

    def test_flows(self) -> None:
        theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
        ours = ConsistencySolverScheduler.from_config(theirs.config)
        assert ours.config.use_flow_sigmas and ours.config.flow_shift == 3.0
        for scheduler in (theirs, ours):
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 7, 7).tolist())
        assert torch.allclose(ours.timesteps, theirs.timesteps, rtol=1e-5)
        assert torch.allclose(ours.sigmas, theirs.sigmas, rtol=1e-5)
        dynamic = ConsistencySolverScheduler.from_config(theirs.config, use_dynamic_shifting=True)
        with pytest.raises(ValueError, match="`mu` must be passed"):
            dynamic.set_timesteps(7)
        dynamic.set_timesteps(7, mu=float(np.log(3.0)))
        assert torch.allclose(ours.timesteps, dynamic.timesteps)

    def test_wrong_timesteps_are_refused(self) -> None:
        scheduler = ConsistencySolverScheduler()
        wrong: dict[str, dict[str, Any]] = {
            "only pass one": {"timesteps": [999, 1], "sigmas": [3.0, 1.0]},
            "Must pass one": {},
            "must fall": {"timesteps": [1, 999]},
            "2 levels were given for 3 steps": {"num_inference_steps": 3, "timesteps": [999, 1]},
        }
        for message, arguments in wrong.items():
            with pytest.raises(ValueError, match=message):
                scheduler.set_timesteps(**arguments)
