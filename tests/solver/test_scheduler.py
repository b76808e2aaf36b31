"""ConsistencySolverScheduler against its plan, and against what diffusers asks of a scheduler."""

import copy
import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.utils import DummyObject

from solver import (
    ConsistencySolverScheduler,
    FlowConsistencySolverScheduler,
    Plan,
    Policy,
    SampleState,
    make_plan,
    sample,
)
from tests.solver.toys import FLOW, NOISE, SD, diffusers_scheduler, network, relative_error, run_scheduler

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

V = {**SD, "prediction_type": "v_prediction"}
X0 = {**SD, "prediction_type": "sample"}
CONFIGS = pytest.mark.parametrize("config", [SD, V, X0, FLOW], ids=["epsilon", "v", "x0", "flow"])


def scheduler_for(config: dict[str, Any], **options: Any) -> ConsistencySolverScheduler:
    name = "FlowMatchEulerDiscreteScheduler" if "shift" in config else "DDIMScheduler"
    theirs = diffusers_scheduler(name, **config)
    return ConsistencySolverScheduler.from_config(theirs.config, **options)


def tables(config: dict[str, Any], *steps: int) -> list[dict[str, Any]]:
    """Tables that no untrained solver has."""
    return [make_plan("ddim", n, config, grid="linspace").to_dict() for n in steps]


def trained_policy() -> Policy:
    policy = Policy(order=3, hidden=8)
    generator = torch.Generator().manual_seed(5)
    for parameter in policy.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return policy


def run_from(scheduler: ConsistencySolverScheduler, x: torch.Tensor, i: int) -> torch.Tensor:
    """A pipeline's loop from row i on."""
    for t in scheduler.timesteps[i:]:
        x = scheduler.step(network(x, t.expand(len(x))), t, x, return_dict=False)[0]
    return x


@CONFIGS
@pytest.mark.parametrize("learned", ["nothing", "table", "policy"])
def test_scheduler_is_its_plan(config: dict[str, Any], learned: Any) -> None:
    scheduler = scheduler_for(config, tables=tables(config, 6) if learned == "table" else None)
    if learned == "policy":
        scheduler.policy = trained_policy()
    for steps in (1, 2, 6, 17):
        result = run_scheduler(scheduler, NOISE, num_inference_steps=steps)
        assert scheduler.plan.nfe == steps == scheduler.num_inference_steps == scheduler.step_index
        assert torch.equal(result, sample(scheduler.plan, network, NOISE))


@CONFIGS
def test_untrained_scheduler_is_the_consistency_plan(config: dict[str, Any]) -> None:
    scheduler = scheduler_for(config)
    scheduler.set_timesteps(6)
    assert scheduler.plan == make_plan("consistency", 6, config)
    np.testing.assert_allclose(scheduler.timesteps, scheduler.plan.timestep, rtol=1e-6)
    scheduler = scheduler_for(config, grid="karras")
    scheduler.set_timesteps(6)
    assert scheduler.plan == make_plan("consistency", 6, config, grid="karras")


@pytest.mark.parametrize("steps", [1, 2, 3, 999, 1000])
def test_any_number_of_steps(steps: int) -> None:
    scheduler = scheduler_for(SD)
    scheduler.policy = Policy()
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == steps and len(scheduler.sigmas) == steps + 1
    assert scheduler.timesteps[0] == 999 and scheduler.timesteps.dtype == torch.int64
    assert scheduler.sigmas[-1] == 0 and bool((scheduler.sigmas.diff() < 0).all())


def test_tables_are_for_their_steps_and_the_policy_for_the_others() -> None:
    scheduler = scheduler_for(SD, tables=tables(SD, 4, 6))
    scheduler.policy = policy = trained_policy()
    for steps in (4, 5, 6):
        scheduler.set_timesteps(steps)
        expected = (
            make_plan("ddim", steps, SD, grid="linspace")
            if steps != 5
            else make_plan("consistency", 5, SD, learned=scheduler.learned)
        )
        assert scheduler.plan == expected
    assert scheduler.plan != make_plan("consistency", 6, SD)
    scheduler.policy = None
    scheduler.set_timesteps(5)
    assert scheduler.plan == make_plan("consistency", 5, SD) and policy.order == 3


@pytest.mark.parametrize("config", [SD, FLOW], ids=["epsilon", "flow"])
def test_what_was_learned_survives_saving(config: dict[str, Any], tmp_path: Path) -> None:
    scheduler = scheduler_for(config, tables=tables(config, 3, 6), guidance=5.0)
    scheduler.policy = trained_policy()
    scheduler.save_pretrained(tmp_path / "model" / "solver")
    loaded = ConsistencySolverScheduler.from_pretrained(tmp_path / "model", subfolder="solver")
    again = ConsistencySolverScheduler.from_pretrained(str(tmp_path / "model" / "solver"))
    for steps in (3, 5, 6):
        expected = run_scheduler(scheduler, NOISE, num_inference_steps=steps)
        assert torch.equal(run_scheduler(loaded, NOISE, num_inference_steps=steps), expected)
        assert torch.equal(run_scheduler(again, NOISE, num_inference_steps=steps), expected)
    assert dict(loaded.config) == {k: v for k, v in scheduler.config.items() if k != "_use_default_values"}


def test_a_policy_is_never_lost_in_silence(tmp_path: Path) -> None:
    scheduler = scheduler_for(SD)
    scheduler.policy = trained_policy()
    scheduler.save_pretrained(tmp_path)
    copied = ConsistencySolverScheduler.from_config(scheduler.config)
    with pytest.raises(ValueError, match="weights are not here: load with from_pretrained"):
        copied.set_timesteps(5)
    copied.policy = scheduler.policy
    copied.set_timesteps(5)
    (tmp_path / "policy.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        ConsistencySolverScheduler.from_pretrained(tmp_path)


def test_a_policy_lies_where_its_config_does(tmp_path: Path) -> None:
    """Without a config in the subfolder diffusers takes the folder's, and so do we the policy."""
    scheduler = scheduler_for(SD)
    scheduler.policy = trained_policy()
    scheduler.save_pretrained(tmp_path)
    (tmp_path / "solver").mkdir()
    Policy(order=2).save(tmp_path / "solver" / "policy.safetensors")
    loaded = ConsistencySolverScheduler.from_pretrained(tmp_path, subfolder="solver")
    assert loaded.policy.order == 3
    scheduler.policy = Policy(order=2)
    scheduler.save_pretrained(tmp_path / "solver")
    (tmp_path / "solver" / "policy.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        ConsistencySolverScheduler.from_pretrained(tmp_path, subfolder="solver")


def test_a_policy_comes_from_where_the_config_was_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    scheduler = scheduler_for(SD)
    scheduler.policy = trained_policy()
    scheduler.save_pretrained(tmp_path / "solver")
    asked = []

    def download(
        repo_id: Any,
        filename: Any,
        *,
        subfolder: Any = None,
        revision: Any = None,
        token: Any = None,
        **options: Any,
    ) -> Any:
        asked.append((repo_id, subfolder, revision, token))
        return str(tmp_path / subfolder / filename)

    monkeypatch.setattr("diffusers.configuration_utils.hf_hub_download", download)
    monkeypatch.setattr("solver.scheduler.hf_hub_download", download)
    loaded = ConsistencySolverScheduler.from_pretrained(
        "someone/model", subfolder="solver", revision="v2", token="secret"
    )
    assert asked == [("someone/model", "solver", "v2", "secret")] * 2
    expected = run_scheduler(scheduler, NOISE, num_inference_steps=5)
    assert torch.equal(run_scheduler(loaded, NOISE, num_inference_steps=5), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction_type": "v_prediction"}, "reads epsilon, but the model predicts v_prediction"),
        ({"beta_end": 0.02}, "made for another noise schedule"),
    ],
)
def test_tables_of_another_model_are_refused(change: Any, message: str) -> None:
    scheduler = scheduler_for({**SD, **change}, tables=tables(SD, 6))
    with pytest.raises(ValueError, match=message):
        scheduler.set_timesteps(6)


def test_tables_that_no_pipeline_could_follow_are_refused() -> None:
    with pytest.raises(ValueError, match="Several tables"):
        scheduler_for(SD, tables=tables(SD, 6) * 2)
    with pytest.raises(ValueError, match="one evaluation a step"):
        scheduler_for(SD, tables=[make_plan("heun", 6, SD).to_dict()])
    with pytest.raises(ValueError, match="Not a plan"):
        scheduler_for(SD, tables=[{"solver": "x"}])


@CONFIGS
def test_custom_timesteps(config: dict[str, Any]) -> None:
    scheduler = scheduler_for(config, tables=tables(config, 4))
    result = run_scheduler(scheduler, NOISE, timesteps=[950.0, 700.5, 400.0, 90.0])
    assert scheduler.timesteps.tolist() == [950.0, 700.5, 400.0, 90.0]
    assert torch.equal(result, sample(scheduler.plan, network, NOISE))
    alpha, sigma = scheduler.schedule.alpha(700.5), scheduler.schedule.sigma(700.5)
    assert (scheduler.plan.alpha[1], scheduler.plan.sigma[1]) == (alpha, sigma)
    usual = [float(t) for t in make_plan("unipc", 6, config).timestep]
    run_scheduler(scheduler, NOISE, timesteps=usual)
    np.testing.assert_allclose(scheduler.plan.b[3], make_plan("consistency", 6, config).b[3], rtol=1e-6)


def test_custom_sigmas() -> None:
    scheduler = scheduler_for(SD)
    sigmas = [14.0, 5.0, 2.0, 0.4, 0.0]
    result = run_scheduler(scheduler, NOISE, sigmas=sigmas)
    np.testing.assert_allclose(scheduler.sigmas, sigmas, rtol=1e-6)
    theirs = diffusers_scheduler("UniPCMultistepScheduler", **SD)
    theirs.set_timesteps(4)
    theirs.sigmas, theirs.timesteps = torch.tensor(sigmas), scheduler.timesteps
    x = NOISE
    for t in theirs.timesteps:
        x = theirs.step(network(x, t.expand(len(x))), t, x, return_dict=False)[0]
    assert relative_error(result, x) < 1e-5
    assert torch.equal(run_scheduler(scheduler, NOISE, sigmas=sigmas[:-1]), result)


@pytest.mark.parametrize("shift", [{"shift": 3.0}, {"use_dynamic_shifting": True}], ids=["static", "mu"])
def test_flow_sigmas_are_shifted_as_flow_match_euler_does(shift: Any) -> None:
    theirs = diffusers_scheduler("FlowMatchEulerDiscreteScheduler", **shift)
    ours = ConsistencySolverScheduler.from_config(theirs.config)
    sigmas = np.linspace(1.0, 1 / 7, 7).tolist()
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(7, sigmas=sigmas, mu=1.15)
    np.testing.assert_allclose(ours.timesteps, theirs.timesteps, rtol=1e-5)
    np.testing.assert_allclose(ours.sigmas, theirs.sigmas, rtol=1e-5)
    ours.set_timesteps(7, mu=1.15)  # and these are what the trailing grid is
    np.testing.assert_allclose(ours.timesteps, theirs.timesteps, rtol=1e-5)


@pytest.mark.parametrize("sigmas", [np.linspace(1, 1 / 6, 6), torch.linspace(1, 1 / 6, 6).tolist()])
def test_sigmas_with_which_flow_pipelines_ask_for_steps_mean_steps(sigmas: Any) -> None:
    """So what was learned for N steps is used in those that never name N."""
    scheduler = scheduler_for(FLOW, tables=tables(FLOW, 6))
    scheduler.set_timesteps(sigmas=sigmas)
    assert scheduler.plan == Plan.from_dict(scheduler.config.tables[0])
    scheduler.set_timesteps(sigmas=[*sigmas[:-1], 0.1])
    assert scheduler.plan != Plan.from_dict(scheduler.config.tables[0])
    with pytest.raises(ValueError, match="6 levels were given for 7 steps"):
        scheduler.set_timesteps(7, sigmas=sigmas)
    other = scheduler_for(SD, tables=tables(SD, 6))
    other.set_timesteps(sigmas=sigmas)  # σ / α from 1 to 1/6, nothing else
    np.testing.assert_allclose(other.sigmas[:6], sigmas, rtol=1e-6)


def test_mu_is_asked_for_where_it_is_needed() -> None:
    flux = diffusers_scheduler("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True, base_shift=0.5)
    scheduler = ConsistencySolverScheduler.from_config(flux.config)
    assert scheduler.config.base_shift == 0.5  # Flux pipelines look for it
    with pytest.raises(ValueError, match="pass mu"):
        scheduler.set_timesteps(4)
    scheduler.set_timesteps(4, mu=0.7)
    assert scheduler.schedule.shift == pytest.approx(math.exp(0.7))


@CONFIGS
@pytest.mark.parametrize("i", [1, 3, 5])
def test_image_to_image_enters_without_outputs_from_before(config: dict[str, Any], i: Any) -> None:
    """A network that knows picture and noise stays on their straight line from any begin index."""
    scheduler = scheduler_for(config, tables=tables(config, 6))
    scheduler.set_timesteps(6)
    scheduler.set_begin_index(i)
    x0, noise = torch.randn(2, 2, 4, 5, 5, generator=torch.Generator().manual_seed(6)).double()
    noisy = scheduler.add_noise(x0, noise, scheduler.timesteps[i].repeat(2))
    alpha, sigma = scheduler.plan.alpha[i], scheduler.plan.sigma[i]
    torch.testing.assert_close(noisy, alpha * x0 + sigma * noise, rtol=1e-6, atol=1e-6)
    x = noisy
    for k in range(i, 6):
        alpha, sigma = scheduler.plan.alpha[k], scheduler.plan.sigma[k]
        kinds = {"epsilon": noise, "sample": x0, "v_prediction": alpha * noise - sigma * x0}
        output = kinds.get(scheduler.plan.prediction_type, noise - x0)
        x = scheduler.step(output, scheduler.timesteps[k], x).prev_sample
    assert scheduler.begin_index == i and scheduler.step_index == 6
    assert relative_error(x, x0) < 1e-4


def test_begin_index_is_a_run_on_the_remaining_levels() -> None:
    scheduler = scheduler_for(SD)
    scheduler.set_timesteps(8)
    found = run_from(scheduler, NOISE, 3)  # the first timestep says where
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(3)
    told = run_from(scheduler, NOISE, 3)
    rest = scheduler_for(SD)
    rest.set_timesteps(timesteps=scheduler.timesteps[3:].tolist())
    expected = run_from(rest, NOISE, 0)
    assert torch.equal(found, told) and torch.equal(told, expected)
    scheduler.set_begin_index(8)
    with pytest.raises(ValueError, match="begin index must be 0 to 7, not 8"):
        scheduler.step(NOISE, 0, NOISE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_handed_out_and_float32_kept(dtype: Any) -> None:
    """The state between steps is not rounded: only what the network sees is."""
    scheduler = scheduler_for(SD)
    scheduler.set_timesteps(30)
    state = SampleState.start(scheduler.plan, NOISE.to(dtype))
    x = NOISE.to(dtype)
    for t in scheduler.timesteps:
        output = network(x.float(), t.expand(3)).to(dtype)
        x = scheduler.step(output, t, x, return_dict=False)[0]
        state.step(output)
        assert x.dtype == dtype and torch.equal(x, state.x.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_sample_that_was_replaced_between_steps_is_taken_as_it_is(dtype: Any) -> None:
    """As inpainting does outside its mask: nothing is left there of what was handed out."""
    scheduler = scheduler_for(SD)
    scheduler.set_timesteps(5)
    state = SampleState.start(scheduler.plan, NOISE.to(dtype))
    kept = NOISE > 0
    x = NOISE.to(dtype)
    for t in scheduler.timesteps:
        output = network(x.float(), t.expand(3)).to(dtype)
        x = scheduler.step(output, t, x).prev_sample
        state.step(output)
        assert torch.equal(x, state.x.to(dtype))
        x = torch.where(kept, x, x / 3)
        state.x = torch.where(kept, state.x, x.float())


def test_a_step_may_change_the_sample_between() -> None:
    """A pipeline may even grow its batch before the history matters."""
    scheduler = scheduler_for(SD)
    scheduler.set_timesteps(5)
    x = NOISE.half()
    for i, t in enumerate(scheduler.timesteps):
        if i == 2:
            x = torch.cat([x, x])
            scheduler.set_timesteps(5)
            scheduler.set_begin_index(2)
        x = scheduler.step(network(x.float(), t.expand(len(x))).half(), t, x).prev_sample
    assert torch.equal(x[:3], x[3:]) and x.isfinite().all()


@CONFIGS
def test_add_noise_is_that_of_diffusers(config: dict[str, Any]) -> None:
    ours = scheduler_for(config)
    t = torch.tensor([900, 400, 3])
    if config is FLOW:
        sigma = t / 1000
        alpha = 1 - sigma
    else:
        table = diffusers_scheduler("DDIMScheduler", **config).alphas_cumprod[t]
        alpha, sigma = table.sqrt(), (1 - table).sqrt()
    noise = NOISE.flip(0)
    expected = alpha.view(-1, 1, 1, 1) * NOISE + sigma.view(-1, 1, 1, 1) * noise
    for _ in range(2):
        torch.testing.assert_close(ours.add_noise(NOISE, noise, t), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(ours.scale_noise(NOISE, t, noise), ours.add_noise(NOISE, noise, t))
        assert ours.add_noise(NOISE.half(), noise.half(), t).dtype == torch.float16
        ours.set_timesteps(7)  # also for timesteps off the grid


def test_a_timestep_that_repeats_means_its_first_row_everywhere() -> None:
    scheduler = scheduler_for(SD, grid="karras")
    scheduler.set_timesteps(60)
    timesteps = scheduler.timesteps.tolist()
    i = next(i for i in range(59) if timesteps[i] == timesteps[i + 1])
    assert scheduler.index_for_timestep(timesteps[i]) == i
    noisy = scheduler.add_noise(NOISE, 0 * NOISE, scheduler.timesteps[i + 1 : i + 2])
    torch.testing.assert_close(noisy, scheduler.plan.alpha[i] * NOISE)
    x = scheduler.step(NOISE, timesteps[i], noisy).prev_sample
    scheduler.step(NOISE, timesteps[i + 1], x)  # the second is reached by counting
    assert scheduler.step_index == i + 2


def test_inpainting_noises_to_the_next_row() -> None:
    scheduler = scheduler_for(SD)
    scheduler.set_timesteps(6)
    scheduler.set_begin_index(2)
    scheduler.step(NOISE, scheduler.timesteps[2], NOISE)
    noisy = scheduler.add_noise(NOISE, 0 * NOISE, scheduler.timesteps[:1])
    torch.testing.assert_close(noisy, scheduler.plan.alpha[3] * NOISE)


def test_runs_leave_nothing_behind() -> None:
    scheduler = scheduler_for(SD)
    first = run_scheduler(scheduler, NOISE, num_inference_steps=7)
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(2)
    scheduler.step(NOISE, scheduler.timesteps[2], NOISE)
    assert scheduler.step_index == 3
    assert torch.equal(run_scheduler(scheduler, NOISE, num_inference_steps=7), first)
    assert torch.equal(run_from(scheduler, NOISE, 0), first)  # a run that is over begins anew
    assert torch.equal(run_scheduler(copy.deepcopy(scheduler), NOISE, num_inference_steps=7), first)


def test_samples_of_a_batch_do_not_touch_each_other() -> None:
    scheduler = scheduler_for(SD)
    whole = run_scheduler(scheduler, NOISE, num_inference_steps=6)
    order = torch.tensor([2, 0, 1])
    assert torch.equal(run_scheduler(scheduler, NOISE[order], num_inference_steps=6), whole[order])
    for i in range(3):
        alone = run_scheduler(scheduler, NOISE[i : i + 1], num_inference_steps=6)
        assert torch.equal(alone[0], whole[i])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of num_inference_steps, timesteps and sigmas"),
        ({"timesteps": [900], "sigmas": [1.0]}, "not both"),
        ({"num_inference_steps": 0}, "whole number from 1 to 1000"),
        ({"num_inference_steps": 1001}, "whole number from 1 to 1000"),
        ({"num_inference_steps": 3, "timesteps": [900, 100]}, "2 levels were given for 3 steps"),
        ({"timesteps": [100, 900]}, "Timesteps must fall"),
        ({"timesteps": [1000, 900]}, "Timesteps must fall, from 999"),
        ({"timesteps": []}, "Timesteps must fall"),
        ({"sigmas": [1.0, 2.0]}, "Sigmas must fall"),
        ({"sigmas": [0.0]}, "Sigmas must fall"),
    ],
)
def test_bad_requests_are_refused_with_a_message(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scheduler_for(SD).set_timesteps(**arguments)


def test_steps_before_timesteps_are_refused() -> None:
    with pytest.raises(ValueError, match="Call set_timesteps first"):
        scheduler_for(SD).step(NOISE, 999, NOISE)


@pytest.mark.parametrize("setting", ["clip_sample", "thresholding"])
def test_a_pipeline_that_clips_is_told(setting: Any) -> None:
    config = diffusers_scheduler("DDIMScheduler", **{**SD, setting: True}).config
    with pytest.raises(ValueError, match=f"set {setting}=False"):
        ConsistencySolverScheduler.from_config(config)
    scheduler = ConsistencySolverScheduler.from_config(config, **{setting: False})
    again = ConsistencySolverScheduler.from_config(scheduler.config)
    assert again.config[setting] is False


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("EDMEulerScheduler", {}, "neither betas .* nor a flow"),
        ("IPNDMScheduler", {}, "neither betas .* nor a flow"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "sets invert_sigmas=True"),
    ],
)
def test_a_model_whose_noise_schedule_is_not_known_is_refused_at_once(
    name: str, options: Any, message: str
) -> None:
    """Not taken for one with our default betas."""
    theirs = diffusers_scheduler(name, **options)
    with pytest.raises(ValueError, match=message):
        ConsistencySolverScheduler.from_config(theirs.config)


def test_what_is_overridden_stays_so_in_the_next_scheduler() -> None:
    """Entries of ours and of others, spoken or not, as for diffusers' own."""
    theirs = diffusers_scheduler("DDIMScheduler")  # would clip, with timestep_spacing="leading"
    ours = ConsistencySolverScheduler.from_config(
        theirs.config, clip_sample=False, timestep_spacing="trailing", grid="karras"
    )
    back = type(theirs).from_config(ours.config)
    assert back.config.timestep_spacing == "trailing" and not back.config.clip_sample
    assert ConsistencySolverScheduler.from_config(back.config).config.grid == "karras"


def test_arguments_for_nobody_are_handed_back_and_not_kept(tmp_path: Path) -> None:
    config = ConsistencySolverScheduler().config
    scheduler, unused = ConsistencySolverScheduler.from_config(
        config, return_unused_kwargs=True, torch_dtype=torch.float16
    )
    assert unused == {"torch_dtype": torch.float16} and "torch_dtype" not in scheduler.config
    scheduler.save_pretrained(tmp_path)
    ConsistencySolverScheduler.from_pretrained(tmp_path, torch_dtype=torch.float16).save_pretrained(tmp_path)


def test_only_unknown_entries_of_a_config_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    for config in (SD, V, FLOW):
        scheduler = scheduler_for(config)
    assert not caplog.records
    with caplog.at_level("WARNING", logger="diffusers"):
        ConsistencySolverScheduler.from_config({**scheduler.config, "colour": "red"})
    assert "{'colour': 'red'} were passed to ConsistencySolverScheduler" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "PNDMScheduler",
        "EulerDiscreteScheduler",
        "UniPCMultistepScheduler",
        "HeunDiscreteScheduler",
    ],
)
def test_from_and_to_the_config_of_any_scheduler(name: str) -> None:
    """There and back nothing of theirs is lost."""
    theirs = diffusers_scheduler(name, **{k: v for k, v in SD.items() if k != "timestep_spacing"})
    ours = ConsistencySolverScheduler.from_config(theirs.config)
    assert {k: ours.config[k] for k in SD if k in ours.config} == {k: SD[k] for k in SD if k in ours.config}
    back = type(theirs).from_config(ours.config)
    assert {k: back.config[k] for k in theirs.config if k[0] != "_"} == {
        k: v for k, v in theirs.config.items() if k[0] != "_"
    }
    assert type(theirs) in ours.compatibles


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # diffusers' KDPM2 in NumPy
@pytest.mark.parametrize(
    "settings",
    [
        {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "grid": "karras"},
        {"beta_schedule": "linear", "prediction_type": "v_prediction", "tables": tables(V, 3)},
        {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"},
    ],
    ids=["epsilon", "table", "flow"],
)
def test_nothing_of_ours_is_lost_in_the_config_of_any_compatible_scheduler(settings: Any) -> None:
    ours = ConsistencySolverScheduler(**settings)
    kinds = [kind for kind in ours.compatibles if not isinstance(kind, DummyObject)]
    assert len(kinds) >= 15
    for kind in kinds:
        back = ConsistencySolverScheduler.from_config(kind.from_config(ours.config).config)
        names = ours.config.keys() - {"_use_default_values"}
        assert {name: back.config[name] for name in names} == {name: ours.config[name] for name in names}
        assert set(back.config["_use_default_values"]) == set(ours.config["_use_default_values"])


def test_flow_config_there_and_back() -> None:
    theirs = diffusers_scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0)
    ours = ConsistencySolverScheduler.from_config(theirs.config)
    assert ours.config.use_flow_sigmas and ours.config.flow_shift == 3.0
    assert ours.config.prediction_type == "flow_prediction"
    back = type(theirs).from_config(ours.config)
    assert back.config.shift == 3.0
    assert ConsistencySolverScheduler.from_config(back.config).config.flow_shift == 3.0


FLOW_CALLS: tuple[dict[str, Any], ...] = (
    {"sigmas": np.linspace(1, 1 / 4, 4)},
    {"num_inference_steps": 4, "mu": 0.7},
)


@pytest.mark.parametrize("call", FLOW_CALLS, ids=("sigmas", "mu"))
def test_programs_that_know_the_class_alone_get_a_flow_or_words(call: Any, tmp_path: Path) -> None:
    """As InvokeAI makes schedulers: `Class(num_train_timesteps=1000)`."""
    with pytest.raises(ValueError, match="Use FlowConsistencySolverScheduler, or from_config"):
        ConsistencySolverScheduler(num_train_timesteps=1000).set_timesteps(**call)
    scheduler = FlowConsistencySolverScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(**call)
    assert scheduler.plan == make_plan("consistency", 4, {"shift": 1.0})
    scheduler.save_pretrained(tmp_path)
    for again in (
        FlowConsistencySolverScheduler.from_pretrained(tmp_path),
        ConsistencySolverScheduler.from_pretrained(tmp_path),
        FlowConsistencySolverScheduler.from_config(scheduler.config),
    ):
        again.set_timesteps(**call)
        assert again.plan == scheduler.plan


def test_a_flow_scheduler_takes_the_shift_of_a_flow_and_refuses_betas() -> None:
    theirs = diffusers_scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0)
    ours = FlowConsistencySolverScheduler.from_config(theirs.config)
    ours.set_timesteps(5)
    assert ours.plan == make_plan("consistency", 5, theirs)
    assert FlowConsistencySolverScheduler(500).config.num_train_timesteps == 500
    with pytest.raises(ValueError, match="use ConsistencySolverScheduler"):
        FlowConsistencySolverScheduler.from_config(SD)


def test_public_surface() -> None:
    scheduler = ConsistencySolverScheduler(**{k: v for k, v in SD.items() if k != "timestep_spacing"})
    assert (scheduler.order, scheduler.init_noise_sigma, len(scheduler)) == (1, 1.0, 1000)
    assert scheduler.step_index is None and scheduler.begin_index is None
    parameters = inspect.signature(ConsistencySolverScheduler.__init__).parameters.values()
    assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters)
    theirs = diffusers_scheduler("DDIMScheduler", **SD)
    torch.testing.assert_close(scheduler.alphas_cumprod, theirs.alphas_cumprod)
    torch.testing.assert_close(scheduler.betas, theirs.betas, rtol=1e-3, atol=1e-6)
    scheduler.set_timesteps(10)
    assert scheduler.index_for_timestep(scheduler.timesteps[4]) == 4
    assert scheduler.index_for_timestep(0) == 9  # none such; the nearest
    output = scheduler.step(NOISE, scheduler.timesteps[0], NOISE)
    assert output.prev_sample.shape == scheduler.step(NOISE, scheduler.timesteps[1], NOISE)[0].shape
    assert scheduler.scale_model_input(NOISE, 0) is NOISE


def test_entries_of_the_config_are_read_from_the_config() -> None:
    scheduler = scheduler_for(SD)
    with pytest.warns(FutureWarning, match="scheduler.config.beta_start"):
        assert scheduler.beta_start == SD["beta_start"]
    with pytest.raises(AttributeError, match="'ConsistencySolverScheduler' object has no attribute 'colour'"):
        _ = scheduler.colour
    scheduler.colour = "red"  # an attribute of one's own is no entry
    assert scheduler.colour == "red" and "colour" not in scheduler.config


@CONFIGS
@pytest.mark.parametrize(
    ("timestep", "shape"),
    [
        (0, (3, 4, 5, 5)),
        (1.0, (2, 3, 4, 5, 5)),  # video
        (torch.tensor(499), (1, 16, 4)),  # packed
        (torch.tensor([999.0]), (2,)),
    ],
)
def test_a_run_may_begin_at_any_timestep(config: dict[str, Any], timestep: Any, shape: Any) -> None:
    scheduler = scheduler_for(config)
    x = torch.ones(shape)
    scheduler.set_timesteps(6)
    named = scheduler.step(0.1 * x, timestep, x)
    scheduler.set_timesteps(6)
    (first,) = scheduler.step(0.1 * x, timestep, x, return_dict=False)
    assert tuple(named.keys()) == ("prev_sample",) and torch.equal(named.prev_sample, first)
    assert first.shape == shape and first.dtype == x.dtype and first.isfinite().all()
    assert scheduler.step(0.1 * x, timestep, first).prev_sample.shape == shape


@pytest.mark.parametrize("num_train_timesteps", [25, 100])
def test_as_many_steps_as_the_model_was_trained_on(num_train_timesteps: Any) -> None:
    scheduler = ConsistencySolverScheduler(num_train_timesteps=num_train_timesteps)
    scheduler.policy = Policy(num_train_timesteps=num_train_timesteps)
    scheduler.set_timesteps(num_train_timesteps)
    assert scheduler.timesteps.tolist() == list(range(num_train_timesteps))[::-1]


@CONFIGS
def test_the_config_alone_makes_the_same_scheduler(config: dict[str, Any], tmp_path: Path) -> None:
    scheduler = scheduler_for(config, tables=tables(config, 4))
    scheduler.save_config(tmp_path)
    loaded = ConsistencySolverScheduler.from_pretrained(tmp_path)
    for steps in (4, 5):
        expected = run_scheduler(scheduler, NOISE, num_inference_steps=steps)
        assert torch.equal(run_scheduler(loaded, NOISE, num_inference_steps=steps), expected)


def test_trained_betas_are_saved(tmp_path: Path) -> None:
    scheduler = ConsistencySolverScheduler(trained_betas=np.array([0.1, 0.3]))
    scheduler.save_pretrained(tmp_path)
    loaded = ConsistencySolverScheduler.from_pretrained(tmp_path)
    assert loaded.betas.tolist() == scheduler.betas.tolist() == pytest.approx([0.1, 0.3])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nothing_waits_for_the_device() -> None:
    scheduler = scheduler_for(SD)
    scheduler.set_timesteps(6, device="cuda")
    scheduler.set_begin_index(0)
    x = NOISE.cuda().half()
    timesteps = list(scheduler.timesteps)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for t in timesteps:
            x = scheduler.step(x, t, x, return_dict=False)[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert x.is_cuda and scheduler.timesteps.is_cuda


def test_a_table_is_kept_to_the_last_bit() -> None:
    scheduler = scheduler_for(SD, tables=tables(SD, 6))
    assert Plan.from_dict(scheduler.config.tables[0]) == make_plan("ddim", 6, SD, grid="linspace")


def test_positional_arguments_are_kept() -> None:
    scheduler = ConsistencySolverScheduler(500, 0.001, 0.01)
    assert "num_train_timesteps" not in scheduler.config["_use_default_values"]
    again = ConsistencySolverScheduler.from_config(scheduler.config)
    assert len(again.alphas_cumprod) == 500
    assert torch.equal(again.alphas_cumprod, scheduler.alphas_cumprod)
