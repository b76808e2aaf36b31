import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from solver import (
    SOLVERS,
    SampleState,
    classifier_free_guidance,
    guided,
    make_plan,
    noise_for_seed,
    sample,
)
from solver.sampling import spherical_interpolation
from tests.solver.toys import FLOW, NOISE, SD, network, relative_error


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_sample_does_not_depend_on_its_batch(solver: str) -> None:
    plan = make_plan(solver, 6, SD)
    whole = sample(plan, network, NOISE)
    order = torch.tensor([2, 0, 1])
    assert torch.equal(sample(plan, network, NOISE[order]), whole[order])
    assert torch.equal(torch.cat([sample(plan, network, x) for x in NOISE.split(1)]), whole)


def test_samples_of_different_plans_share_a_batch() -> None:
    requests = [
        (make_plan("unipc", 6, SD), NOISE[0]),
        (make_plan("heun", 4, SD), NOISE[1]),
        (make_plan("ab4", 9, {**SD, "prediction_type": "v_prediction"}), NOISE[2]),
        (make_plan("dpm++3m", 5, FLOW), NOISE[0]),
    ]
    finished: dict[int, torch.Tensor] = {}
    running: dict[int, SampleState] = {}
    waiting = dict(enumerate(requests))
    while waiting or running:
        if waiting:  # one joins at every tick
            k, (plan, noise) = waiting.popitem()
            running[k] = SampleState.start(plan, noise)
        states = list(running.values())
        inputs = torch.stack([state.model_input() for state in states])
        outputs = network(inputs, torch.tensor([state.timestep for state in states]))
        for state, output in zip(states, outputs, strict=True):
            state.step(output)
        finished |= {k: state.x for k, state in running.items() if state.done}
        running = {k: state for k, state in running.items() if not state.done}
    for k, (plan, noise) in enumerate(requests):
        assert torch.equal(finished[k], sample(plan, network, noise[None])[0])


@pytest.mark.parametrize("config", [SD, {**SD, "prediction_type": "v_prediction"}, FLOW])
@pytest.mark.parametrize("solver", ["unipc", "heun", "ab4"])
def test_intermediate_pictures_are_the_expected_ones(solver: str, config: dict[str, Any]) -> Any:
    """A network that knows the picture says so at every step, whatever it is asked to predict."""
    plan = make_plan(solver, 5, config)
    x0, noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    seen: list[tuple[int, torch.Tensor]] = []

    def knows(x: Any, t: Any) -> Any:
        i = len(seen)
        s = plan.input_scale[i]
        alpha, sigma = s * plan.alpha[i], s * plan.sigma[i]
        epsilon = (x - alpha * x0) / sigma
        return {"epsilon": epsilon, "v_prediction": alpha * epsilon - sigma * x0}.get(
            plan.prediction_type, epsilon - x0
        )

    result = sample(plan, knows, noise[None], lambda i, picture: seen.append((i, picture)))
    assert [i for i, _ in seen] == list(range(1, plan.nfe + 1))
    for _, picture in seen:
        assert relative_error(picture[0], x0) < 1e-4
    assert relative_error(result[0], x0) < 1e-4


def test_history_is_dropped_and_states_stay_valid() -> None:
    plan = make_plan("dpm++2m", 8, SD)
    state = SampleState.start(plan, NOISE[0])
    kept, copies = [], []
    while not state.done:
        kept.append(state.x)
        copies.append(state.x.clone())
        state.step(network(state.model_input()[None], torch.tensor([state.timestep]))[0])
        assert len(state.history) <= plan.columns - 1
    assert all(
        torch.equal(a, b) for a, b in zip(kept, copies, strict=True)
    )  # pictures shown stay as they were
    with pytest.raises(IndexError):
        state.step(state.x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_networks_are_summed_in_float32(dtype: Any) -> Any:
    plan = make_plan("unipc", 20, SD)
    seen = set()

    def half(x: Any, t: Any) -> Any:
        seen.add((x.dtype, t.dtype))
        return network(x.float(), t).to(dtype)

    result = sample(plan, half, NOISE.to(dtype))
    assert result.dtype == torch.float32 and seen == {(dtype, torch.float32)}
    rounding = torch.finfo(dtype).eps
    assert relative_error(result, sample(plan, network, NOISE.to(dtype).float())) < 20 * rounding


def test_a_plan_can_be_joined_in_the_middle() -> None:
    plan = make_plan("ddim", 6, SD)
    state = SampleState.start(plan, NOISE)
    halfway = None
    while not state.done:
        if state.index == 3:
            halfway = SampleState(plan, state.x, index=3)
        state.step(network(state.model_input(), torch.full((3,), state.timestep)))
    assert halfway is not None
    while not halfway.done:
        halfway.step(network(halfway.model_input(), torch.full((3,), halfway.timestep)))
    assert torch.equal(halfway.x, state.x)
    with pytest.raises(ValueError, match="index must be 0 to 6"):
        SampleState(plan, NOISE, index=7)


def test_a_seed_is_a_picture() -> None:
    a, b = noise_for_seed(7, (4, 16, 16)), noise_for_seed(8, (4, 16, 16))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert torch.equal(a, noise_for_seed(7, (4, 16, 16))) and not torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's random numbers are touched
    assert a.dtype == torch.float32 and abs(float(a.std()) - 1) < 0.1
    for seed in (-1, 2**63):
        with pytest.raises(ValueError, match="A seed is a whole number"):
            noise_for_seed(seed, (1,))


def test_guidance_is_one_call_and_one_number_per_sample() -> Any:
    calls = []

    def both(x: Any, t: Any) -> Any:
        calls.append(len(x))
        uncond, cond = x.chunk(2)
        return torch.cat([uncond + t[: len(uncond), None, None, None], 2 * cond])

    scale = torch.tensor([1.0, 3.0, 7.5])
    t = torch.tensor([10.0, 20.0, 30.0])
    result = guided(both, scale)(NOISE, t)
    assert calls == [6]
    for i in range(3):
        alone = guided(both, float(scale[i]))(NOISE[i : i + 1], t[i : i + 1])
        torch.testing.assert_close(result[i : i + 1], alone)
        by_hand = NOISE[i] + t[i] + scale[i] * (2 * NOISE[i] - NOISE[i] - t[i])
        torch.testing.assert_close(result[i], by_hand)
    assert torch.equal(classifier_free_guidance(NOISE, 2 * NOISE, 0.0), NOISE)


def test_import_is_light() -> None:
    code = (
        "import sys, solver; print([m for m in ('gradio', 'transformers', 'diffusers') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("amount", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_noise_between_two_noises_is_noise(amount: Any) -> None:
    one, other = noise_for_seed(1, (16, 32, 32)), noise_for_seed(2, (16, 32, 32))
    between = spherical_interpolation(one, other, amount)
    assert abs(float(between.std()) - 1) < 0.02
    turned = torch.arccos(torch.nn.functional.cosine_similarity(between.flatten(), one.flatten(), 0))
    whole = torch.arccos(torch.nn.functional.cosine_similarity(other.flatten(), one.flatten(), 0))
    assert abs(float(turned - amount * whole)) < 1e-2
    if amount in (0, 1):
        assert torch.equal(between, other if amount else one)
    assert torch.allclose(spherical_interpolation(one, one, amount), one)


def test_the_documentation_shows_sample_as_it_is_and_it_can_be_pasted() -> None:
    code = inspect.getsource(sample)
    page = (Path(__file__).parents[2] / "docs" / "solver.md").read_text(encoding="utf-8")
    imports, shown = (block.split("```")[0] for block in page.split("```python\n")[1:3])
    assert shown == code
    assert len(code.splitlines()) <= 25
    pasted: dict[str, Any] = {}
    exec(imports + shown, pasted)
    plan = make_plan("unipc", 5, SD)
    assert torch.equal(pasted["sample"](plan, network, NOISE), sample(plan, network, NOISE))
