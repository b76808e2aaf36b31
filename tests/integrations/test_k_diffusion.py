"""The sampler of k-diffusion's kind against `sample`: in the real package, where installed, and alone."""

import importlib
import importlib.util
import json
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from integrations import k_diffusion
from integrations.k_diffusion import get_sigmas, plan_for, read_plans, sample_consistency
from solver import LearnedSolver, NoiseSchedule, make_plan, sample
from solver.grids import TimeGrid
from tests.integrations.comfy_stand_in import Const, Model, Sampling
from tests.integrations.test_diffusers import learned_plan
from tests.solver.toys import FLOW, NOISE, SD, network, relative_error

V = {**SD, "prediction_type": "v_prediction"}
X0 = {**SD, "prediction_type": "sample"}
CONFIGS = pytest.mark.parametrize("config", [SD, V, X0, FLOW], ids=["epsilon", "v", "x0", "flow"])
HERE = Path(k_diffusion.__file__).parent


@pytest.fixture
def real() -> Iterator[Any]:
    """The installed k-diffusion's samplers and wrappers, without what it has for training."""
    found = importlib.util.find_spec("k_diffusion")
    if found is None:
        reason = "k-diffusion is not installed: pip install --no-deps -r requirements-k-diffusion.txt"
        assert not os.environ.get("REQUIRE_K_DIFFUSION"), reason
        pytest.skip(reason)
    before = dict(sys.modules)
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(found.submodule_search_locations or ())
    sys.modules["k_diffusion"] = package
    if (
        importlib.util.find_spec("torchvision") is None
    ):  # it loads and saves pictures, which no test here does
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]  # type: ignore[attr-defined]
        transforms = sys.modules["torchvision.transforms"]
        transforms.functional = sys.modules["torchvision.transforms.functional"]  # type: ignore[attr-defined]
        transforms.transforms = transforms  # type: ignore[attr-defined]
    for name in ("k_diffusion.sampling", "k_diffusion.external"):
        importlib.import_module(name)
    yield package
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]


def schedule(config: dict[str, Any]) -> NoiseSchedule:
    return NoiseSchedule.from_config(config)


def model_for(config: dict[str, Any]) -> Model:
    S = schedule(config)
    return Model(network, (Const if S.is_flow else Sampling)(S, rounded=False))


def unit_noise(sigmas: Tensor, flow: bool) -> Tensor:
    """Noise as such a sampler gets it, of the variance that `sample` starts from."""
    return NOISE if flow else NOISE * (1 + float(sigmas[0]) ** 2) ** 0.5


@pytest.mark.parametrize("config", [SD, V], ids=["epsilon", "v"])
@pytest.mark.parametrize("learned", [False, True])
def test_in_the_real_package(real: Any, config: dict[str, Any], learned: bool, tmp_path: Path) -> None:
    S = schedule(config)
    kind = real.external.DiscreteVDDPMDenoiser if config is V else real.external.DiscreteEpsDDPMDenoiser
    model = kind(network, torch.tensor(S.alphas_cumprod), quantize=False)
    plan = learned_plan(config, 6) if learned else make_plan("unipc", 6, config)
    plan.save(tmp_path / "plan.json")
    plans = read_plans(tmp_path / "plan.json").plans if learned else ()
    sigmas = get_sigmas(6, model.sigmas, plans=plans)
    seen: list[dict[str, Any]] = []
    result = sample_consistency(
        model,
        unit_noise(sigmas, False),
        sigmas,
        extra_args={},
        callback=seen.append,
        disable=True,
        plans=plans,
    )
    assert relative_error(result, sample(plan, network, NOISE)) < 2e-5
    euler: list[dict[str, Any]] = []
    real.sampling.sample_euler(model, NOISE * sigmas[0], sigmas, callback=euler.append, disable=True)
    assert [step["i"] for step in seen] == [step["i"] for step in euler]
    assert seen[0].keys() == euler[0].keys() and seen[0]["x"].shape == NOISE.shape
    assert seen[3]["sigma"] == sigmas[3]


@CONFIGS
@pytest.mark.parametrize("steps", [1, 2, 3, 9, 40])
def test_without_plans_it_is_unipc(config: dict[str, Any], steps: int) -> None:
    model, flow = model_for(config), config is FLOW
    sigmas = get_sigmas(steps, model.sampling.sigmas, flow=flow)
    result = sample_consistency(model.denoised, unit_noise(sigmas, flow), sigmas, disable=True, flow=flow)
    assert relative_error(result, sample(make_plan("unipc", steps, config), network, NOISE)) < 1e-5


@CONFIGS
def test_levels_are_trailing_for_every_number_of_steps(config: dict[str, Any]) -> None:
    table = model_for(config).sampling.sigmas
    for steps in (*range(1, 51), 333, 1000):
        plan = make_plan("unipc", steps, config)
        sigma = np.divide(plan.sigma, 1 if config is FLOW else plan.alpha)
        np.testing.assert_allclose(get_sigmas(steps, table, flow=config is FLOW), sigma, rtol=1e-4, atol=1e-6)
    for strength in (0.8, 0.31, 0.05):
        plan = make_plan("unipc", 10, config, strength=strength)
        sigma = np.divide(plan.sigma, 1 if config is FLOW else plan.alpha)
        sigmas = get_sigmas(10, table, flow=config is FLOW, strength=strength)
        np.testing.assert_allclose(sigmas, sigma, rtol=1e-4, atol=1e-6)


@CONFIGS
def test_the_last_levels_of_a_plan_get_rows_of_their_own(config: dict[str, Any], tmp_path: Path) -> None:
    """As A1111 does image to image: a picture, noised to a level in the middle of the plan."""
    plan, model, flow = learned_plan(config, 6), model_for(config), config is FLOW
    plan.save(tmp_path / "plan.json")
    plans = read_plans(tmp_path / "plan.json").plans
    sigmas = get_sigmas(6, model.sampling.sigmas, flow=flow, plans=plans)[2:]
    x = (1 - sigmas[0] if flow else 1) * torch.ones_like(NOISE) + sigmas[0] * NOISE
    result = sample_consistency(model.denoised, x, sigmas, disable=True, plans=plans, flow=flow)
    levels = torch.tensor([plan.alpha[2:], plan.sigma[2:]]).double()
    grid = TimeGrid(torch.tensor(plan.timestep[2:]).double(), torch.log(levels[0] / levels[1]))
    rest = LearnedSolver().plan_on(grid, schedule(config))
    noisy = plan.alpha[2] * torch.ones_like(NOISE) + plan.sigma[2] * NOISE
    assert relative_error(result, sample(rest, network, noisy)) < 2e-5


def test_its_table_of_unipc_is_the_solver_s() -> None:
    plan = make_plan("unipc", 7, SD)
    ours = plan_for([s / a for a, s in zip(plan.alpha, plan.sigma, strict=True)], (), False)
    assert ours.a == pytest.approx(plan.a, abs=1e-12)
    for row, weights in zip(ours.b, plan.b, strict=True):
        assert row == pytest.approx(weights[: len(row)], abs=1e-9)


def test_half_precision_keeps_its_type() -> None:
    model = model_for(SD)
    sigmas = get_sigmas(4, model.sampling.sigmas)

    def half(x: Tensor, sigma: Tensor) -> Tensor:
        assert x.dtype == torch.bfloat16
        return model.denoised(x.float(), sigma.float()).bfloat16()

    x = unit_noise(sigmas, False).bfloat16()
    assert sample_consistency(half, x, sigmas, disable=True).dtype == torch.bfloat16


def test_wrong_levels_and_plans_are_refused(tmp_path: Path) -> None:
    model = model_for(SD)
    for sigmas in ([1.0, 2.0, 0.0], [1.0, 1.0, 0.0], [1.0]):
        with pytest.raises(ValueError, match="The noise levels must fall"):
            sample_consistency(model.denoised, NOISE, torch.tensor(sigmas), disable=True)
    with pytest.raises(ValueError, match="Choose 1 to 1000 steps"):
        get_sigmas(1001, model.sampling.sigmas)
    plan = learned_plan(SD, 6).to_dict()
    wrong: dict[str, Any] = {
        "is not JSON": "no JSON",
        "holds no plans": json.dumps({"format": "a shopping list"}),
        "has version 2 of its format": json.dumps(plan | {"version": 2}),
        "keeps its state in another scaling": json.dumps(plan | {"input_scale": [0.5] * 6}),
        "'solver' is missing": json.dumps({k: v for k, v in plan.items() if k != "solver"}),
    }
    for message, text in wrong.items():
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_plans(tmp_path / "plan.json")


def test_plans_of_before_are_read(tmp_path: Path) -> None:
    plan = {k: v for k, v in learned_plan(SD, 6).to_dict().items() if "told" not in k and k != "version"}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    (read,) = read_plans(tmp_path / "plan.json").plans
    assert read.told == read.levels[:-1]


@pytest.mark.parametrize("copy", ["comfyui/sampling.py", "forge/lib_consistency_solver/sampling.py"])
def test_the_copies_in_the_folders_are_the_same(copy: str) -> None:
    """Folders work alone, so each has this file: cp integrations/k_diffusion.py integrations/<copy>."""
    assert (HERE / copy).read_text() == (HERE / "k_diffusion.py").read_text()
