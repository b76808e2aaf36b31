"""The nodes of ComfyUI against `sample`, on a stand-in for the interface that they use."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, nodes
from solver import LearnedSolver, NoiseSchedule, SampleState, make_plan, sample
from tests.integrations import comfy_stand_in
from tests.integrations.comfy_stand_in import Const, Model, Sampling, prepare_noise
from tests.integrations.test_diffusers import learned_plan
from tests.solver.toys import FLOW, SD, network, relative_error

V = {**SD, "prediction_type": "v_prediction"}
X0 = {**SD, "prediction_type": "sample"}
CONFIGS = pytest.mark.parametrize("config", [SD, V, X0, FLOW], ids=["epsilon", "v", "x0", "flow"])
LATENT = {"samples": torch.zeros(1, 4, 5, 5)}
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def shown_steps() -> Iterator[list[int]]:
    with comfy_stand_in.installed() as steps:
        yield steps


@pytest.fixture
def plans_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(nodes, "PLANS", tmp_path)
    return tmp_path


def model_for(config: dict[str, Any], rounded: bool = False) -> Model:
    schedule = NoiseSchedule.from_config(config)
    return Model(network, (Const if schedule.is_flow else Sampling)(schedule, rounded))


def grid(model: Model, **inputs: Any) -> Any:
    given: dict[str, Any] = {
        "seed": 7,
        "count": 3,
        "plans": nodes.UNIPC,
        "steps": 6,
        "cfg": 3.0,
        "denoise": 1.0,
    } | inputs
    latent = given.pop("latent", LATENT)
    return nodes.PreviewGrid().make(model, "a lake", "", latent, **given)


def noises(*seeds: int) -> torch.Tensor:
    return torch.cat([prepare_noise(LATENT["samples"], seed) for seed in seeds])


@CONFIGS
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("steps", [4, 6, 8])
def test_previews_without_plans_are_unipc_s(config: dict[str, Any], rounded: bool, steps: int) -> None:
    latent, previews, about = grid(model_for(config, rounded), steps=steps)
    expected = sample(make_plan("unipc", steps, config), network, noises(7, 8, 9))
    assert relative_error(latent["samples"], expected) < 1e-5
    assert previews.seeds == (7, 8, 9)
    assert about == f"{steps} steps of UniPC; no plans were chosen."


@CONFIGS
def test_a_learned_plan_is_followed(config: dict[str, Any], plans_folder: Path) -> None:
    plan = learned_plan(config, 6)
    plan.save(plans_folder / "mine.json")
    assert nodes.families() == [nodes.UNIPC, "mine"]
    model = model_for(config)
    latent, _, about = grid(model, plans="mine")
    expected = sample(plan, network, noises(7, 8, 9))
    assert relative_error(latent["samples"], expected) < 1e-5
    assert about.startswith("6 steps of a plan learned for mine")
    assert len(model.calls) == 6
    # Told levels are those of the timesteps, not the state's.
    told = [float(model.sampling.timestep(sigma)[0]) for sigma in model.calls]
    assert told == pytest.approx(plan.timestep, rel=1e-4)


def test_rounded_times_cost_little(plans_folder: Path) -> None:
    """Whole timesteps are what ComfyUI tells models; plans tell real ones."""
    plan = learned_plan(SD, 6)
    plan.save(plans_folder / "mine.json")
    latent, _, _ = grid(model_for(SD, rounded=True), plans="mine")
    assert relative_error(latent["samples"], sample(plan, network, noises(7, 8, 9))) < 5e-3


def test_each_preview_comes_from_its_seed_alone(shown_steps: list[int]) -> None:
    four = grid(model_for(SD), count=4)[0]["samples"]
    assert shown_steps == list(range(6))
    for k, picture in enumerate(four):
        alone = grid(model_for(SD), seed=7 + k, count=1)[0]["samples"]
        assert torch.allclose(alone[0], picture, atol=1e-6)
    wrapped = grid(model_for(SD), seed=2**64 - 1, count=1)[1]
    assert wrapped.seeds == (2**64 - 1,)


@CONFIGS
def test_the_picked_preview_is_refined_from_its_noise(config: dict[str, Any]) -> None:
    _, previews, _ = grid(model_for(config))
    latent, about = nodes.RefinePicked().make(previews, picked=2, plans=nodes.UNIPC, steps=40)
    expected = sample(make_plan("unipc", 40, config), network, noises(8))
    assert relative_error(latent["samples"], expected) < 2e-5
    assert about == "40 steps of UniPC; no plans were chosen."


def test_none_picked_makes_nothing_and_a_wrong_pick_says_so() -> None:
    model = model_for(SD)
    _, previews, _ = grid(model)
    calls = len(model.calls)
    blocked = nodes.RefinePicked().make(previews, picked=0, plans=nodes.UNIPC, steps=40)
    assert [type(each).__name__ for each in blocked] == ["ExecutionBlocker"] * 2
    assert len(model.calls) == calls
    with pytest.raises(ValueError, match="There are 3 previews; pick one of them, not 4"):
        nodes.RefinePicked().make(previews, picked=4, plans=nodes.UNIPC, steps=40)


@CONFIGS
@pytest.mark.parametrize("strength", [0.5, 0.3])
def test_image_to_image_starts_at_the_strength(config: dict[str, Any], strength: float) -> None:
    """Previews and their refinement begin at the same noised picture, and are the plans of `make_plan`."""
    picture = 0.5 * torch.ones(1, 4, 5, 5)
    model = model_for(config)
    latent, previews, _ = grid(model, latent={"samples": picture}, denoise=strength, count=1)
    refined, _ = nodes.RefinePicked().make(previews, picked=1, plans=nodes.UNIPC, steps=40)
    for result, steps in ((latent, 6), (refined, 40)):
        plan = make_plan("unipc", steps, config, strength=strength)
        state = SampleState.start(plan, noises(7), picture)
        while not state.done:
            state.step(network(state.x, torch.tensor([state.timestep])))
        assert relative_error(result["samples"], state.x) < 2e-5


def test_the_sampler_node_gives_what_custom_samplers_take() -> None:
    model = model_for(FLOW)
    sampler, sigmas, about = nodes.ConsistencySolverSampler().make(model, nodes.UNIPC, 6, 1.0)
    assert isinstance(sampler, comfy_stand_in.KSampler)
    assert sigmas.dtype == torch.float32 and len(sigmas) == 7 and sigmas[-1] == 0
    assert sigmas[0] == model.sampling.sigma_max
    assert "UniPC" in about


def test_plans_of_another_model_are_refused(plans_folder: Path) -> None:
    learned_plan(SD, 6).save(plans_folder / "mine.json")
    for other in (FLOW, {**SD, "beta_end": 0.02}):
        with pytest.raises(ValueError, match="choose plans of this model, or none"):
            grid(model_for(other), plans="mine")


def test_a_line_says_when_there_is_no_plan(plans_folder: Path) -> None:
    learned_plan(SD, 6).save(plans_folder / "mine.json")
    about = [
        grid(model_for(SD), plans="mine", steps=steps, denoise=denoise)[2]
        for steps, denoise in ((5, 1.0), (6, 0.5))
    ]
    assert about[0] == "5 steps of UniPC: mine has plans for 6 steps."
    assert about[1] == "6 steps of UniPC: mine has plans for 6 steps, which start from pure noise."


def test_the_plans_that_come_along() -> None:
    """Those of landscapes are the embedded model's; Stable Diffusion 1.5 has none, and says so."""
    config = json.loads((ROOT / "checkpoints/landscapes/scheduler/scheduler_config.json").read_text())
    learned = LearnedSolver.load(ROOT / "checkpoints/landscapes/solver")
    assert nodes.families() == [nodes.UNIPC, "landscapes", "stable-diffusion-1.5"]
    file = nodes.read_plans(nodes.PLANS / "landscapes.json")
    assert [len(plan.a) for plan in file.plans] == [4, 5, 6, 7, 8, 10]
    schedule = NoiseSchedule.from_config(config)
    for plan in file.plans:
        expected = learned.plan(len(plan.a), schedule)
        message = (
            "run: python -m solver export --to json integrations/comfyui/plans/landscapes.json --learned "
        )
        message += "checkpoints/landscapes --name Landscapes --steps 4 5 6 7 8 10"
        assert plan.a == pytest.approx(expected.a, abs=1e-5), message
        for row, weights in zip(plan.b, expected.b, strict=True):
            assert row == pytest.approx(weights, abs=1e-5), message
    latent, _, about = grid(model_for(config), plans="landscapes")
    expected_latent = sample(learned.plan(6, schedule), network, noises(7, 8, 9))
    assert relative_error(latent["samples"], expected_latent) < 1e-4
    assert about == "6 steps of a plan learned for Landscapes. Learned at guidance scale 3."
    about = grid(model_for(SD), plans="stable-diffusion-1.5")[2]
    assert about.startswith(
        "6 steps of UniPC: Stable Diffusion 1.5 has no learned plans. The published solver"
    )


def test_the_node_folder_needs_nothing_from_here() -> None:
    assert NODE_CLASS_MAPPINGS.keys() == NODE_DISPLAY_NAME_MAPPINGS.keys()
    for path in Path(nodes.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert str(node.module).partition(".")[0] not in (
                    "solver",
                    "app",
                    "integrations",
                    "checkpoints",
                )
    inputs = {name: node.INPUT_TYPES()["required"] for name, node in NODE_CLASS_MAPPINGS.items()}  # type: ignore[attr-defined]
    assert inputs["ConsistencySolverPreviewGrid"]["steps"][1] == {"default": 6, "min": 4, "max": 8}
    for made in NODE_CLASS_MAPPINGS.values():
        assert len(made.RETURN_TYPES) == len(made.RETURN_NAMES)  # type: ignore[attr-defined]
