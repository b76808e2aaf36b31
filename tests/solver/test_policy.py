"""The policy: untrained it is a classical solver; whatever it learns stays consistent."""

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from solver import LearnedSolver, NoiseSchedule, Policy, advance, make_plan, sample
from solver.grids import TimeGrid, time_grid
from solver.multistep import multistep, transport, variable_adams_bashforth
from solver.paper import load_policy
from solver.plan import Tables
from solver.policy import classical_weights
from tests.solver.toys import FLOW, NOISE, SD, Gaussian, network, relative_error

S = NoiseSchedule.from_config(SD)
ORDERS = pytest.mark.parametrize("order", [1, 2, 3, 4])
EVERYTHING = ("rows", "grid", "times", "state")


def trained(
    order: int = 4, start: str = "dpm++2m", learns: tuple[str, ...] = ("rows",), **settings: Any
) -> Policy:
    policy = Policy(order, start, learns, hidden=16, **settings)
    generator, scale = torch.Generator().manual_seed(7), 1.0 if policy.bins else 0.15
    for parameter in policy.mlp.parameters():
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    return policy


def tables(policy: Policy, schedule: NoiseSchedule, grid: TimeGrid, guidance: float = 3.0) -> Tables:
    return policy.tables(schedule, grid, policy.likeliest(grid, torch.tensor([guidance])))


def weights(policy: Policy, grid: TimeGrid) -> torch.Tensor:
    """[N, order], newest output first."""
    made = tables(policy, S, grid)
    return made.b[0] / transport(policy.combines(S), *S.levels(grid.lam))[1][:, None]


@pytest.mark.parametrize("steps", [1, 2, 3, 6, 20])
@pytest.mark.parametrize("grid", ["trailing", "karras"])
@pytest.mark.parametrize(
    ("start", "config"),
    [("dpm2m", SD), ("dpm++2m", SD), ("dpm++2m", {**SD, "prediction_type": "v_prediction"})],
)
def test_untrained_policy_is_dpm_solver(start: str, config: dict[str, Any], grid: str, steps: int) -> None:
    for order in (2, 4):
        schedule = NoiseSchedule.from_config(config)
        plan = Policy(order, start).plan(schedule, time_grid(grid, schedule, steps), 3.0)
        theirs = make_plan(start, steps, config, grid=grid)
        np.testing.assert_allclose(plan.a, theirs.a, rtol=1e-5, atol=1e-6)
        for row, expected in zip(plan.b, theirs.b, strict=True):
            np.testing.assert_allclose(
                [w for w in row if w], [w for w in expected if w], rtol=1e-5, atol=1e-6
            )
        assert relative_error(sample(plan, network, NOISE), sample(theirs, network, NOISE)) < 1e-5


def test_untrained_policy_is_dpm_solver_plus_plus_on_a_flow() -> None:
    schedule = NoiseSchedule.from_config(FLOW)
    plan = Policy(3, "dpm++2m").plan(schedule, time_grid("trailing", schedule, 7), 3.0)
    theirs = make_plan("dpm++2m", 7, FLOW)
    assert relative_error(sample(plan, network, NOISE), sample(theirs, network, NOISE)) < 1e-5


@ORDERS
@pytest.mark.parametrize("config", [SD, FLOW], ids=["epsilon", "flow"])
def test_untrained_adams_bashforth_is_that_exactly(config: dict[str, Any], order: int) -> None:
    schedule = NoiseSchedule.from_config(config)
    grid = time_grid("trailing", schedule, 9)
    policy = Policy(order, "ab")
    combines = policy.combines(schedule)
    assert combines == ("flow_prediction" if config is FLOW else "epsilon")
    alpha, sigma = schedule.levels(grid.lam)
    rows = variable_adams_bashforth(sigma if config is FLOW else sigma / alpha, order)
    expected = multistep(rows[None], combines, schedule, grid).plan(0, "consistency")
    assert policy.plan(schedule, grid, 3.0) == expected


@pytest.mark.parametrize("steps", [1, 2, 5, 8, 20])
@pytest.mark.parametrize("grid", ["trailing", "karras"])
@pytest.mark.parametrize(
    "config", [SD, {**SD, "prediction_type": "v_prediction"}, FLOW], ids=["eps", "v", "flow"]
)
def test_untrained_policy_is_unipc(config: dict[str, Any], grid: str, steps: int) -> None:
    """Whatever it could learn, and with room for all outputs."""
    schedule = NoiseSchedule.from_config(config)
    plan = Policy(32, "unipc", EVERYTHING).plan(schedule, time_grid(grid, schedule, steps), 3.0)
    theirs = make_plan("unipc", steps, config, grid=grid)
    assert relative_error(sample(plan, network, NOISE), sample(theirs, network, NOISE)) < 1e-5


def test_too_low_an_order_keeps_the_sum() -> None:
    grid = time_grid("trailing", S, 6)
    for order in (1, 2, 3):
        row_sums = classical_weights("unipc", order, S, grid).sum(dim=1)
        torch.testing.assert_close(row_sums, torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-5)


@ORDERS
@pytest.mark.parametrize("start", ["ab", "dpm2m", "dpm++2m", "unipc"])
def test_whatever_is_learned_sums_to_one(start: str, order: int) -> None:
    policy, untrained = trained(order, start), Policy(order, start)
    grid = time_grid("trailing", S, 9)
    w = weights(policy, grid)
    assert w.shape == (9, order)
    torch.testing.assert_close(w.sum(dim=1), torch.ones(9, dtype=torch.float64), rtol=0, atol=1e-5)
    assert torch.equal(w, w.tril())  # nothing is weighed before it exists
    moved = (w - weights(untrained, grid)).abs().amax(dim=1) > 1e-3
    assert moved.tolist() == [order > 1 and i > 0 for i in range(9)]


def test_free_rows_need_not_sum_to_one() -> None:
    policy, grid = trained(3, "unipc", free=True), time_grid("trailing", S, 6)
    moved = (weights(policy, grid) - weights(Policy(3, "unipc"), grid)).abs() > 1e-3
    assert torch.equal(moved, torch.ones(6, 3, dtype=torch.bool).tril())
    assert (weights(policy, grid).sum(dim=1) - 1).abs().min().item() > 1e-3


@pytest.mark.parametrize("config", [SD, FLOW], ids=["epsilon", "flow"])
def test_learned_grids_share_their_ends(config: dict[str, Any]) -> None:
    """Same noise: whatever it learns, a run starts where all start, rises in log-SNR, and ends at σ = 0."""
    schedule = NoiseSchedule.from_config(config)
    grid = time_grid("trailing", schedule, 7)
    plan = trained(4, "unipc", EVERYTHING).plan(schedule, grid, 3.0)
    sigma = schedule.levels(grid.lam)[1].tolist()
    assert plan.sigma[0] == pytest.approx(sigma[0]) and plan.sigma[-1] == 0 and plan.alpha[-1] == 1
    assert np.all(np.diff(plan.sigma) < 0)
    assert np.abs(np.subtract(plan.sigma, sigma)).max() > 1e-3
    own = [
        float(schedule.timestep(np.log(a / s))) for a, s in zip(plan.alpha[:-1], plan.sigma[:-1], strict=True)
    ]
    assert np.abs(np.subtract(plan.timestep, own)).max() > 1  # the network is told something else

    kept = trained(4, "unipc", EVERYTHING).plan(schedule, grid, 3.0, keep_grid=True)
    np.testing.assert_allclose(kept.sigma, sigma, rtol=1e-9)
    np.testing.assert_array_equal(kept.timestep, grid.timestep)


def test_what_has_no_effect_is_masked() -> None:
    """Exactly the decisions in the mask change the solver."""
    for free in (False, True):
        policy, grid = Policy(3, "unipc", EVERYTHING, free=free), time_grid("trailing", S, 4)
        mask = policy.mask(4)
        base = policy.tables(S, grid, torch.zeros(1, *mask.shape))
        for i, j in np.ndindex(*mask.shape):
            offsets = torch.zeros(1, *mask.shape)
            # t = 999 is the last there is
            offsets[0, i, j] = 0.1 if (i, policy.decisions[j]) == (0, "times") else -0.1
            made = policy.tables(S, grid, offsets)
            changed = any(
                not torch.equal(getattr(made, n), getattr(base, n)) for n in ("a", "b", "sigma", "timestep")
            )
            assert changed == bool(mask[i, j]), (i, j)


@pytest.mark.parametrize("bins", [3, 11])
def test_untrained_bins_are_the_classical_solver(bins: Any) -> None:
    policy, grid = Policy(3, "unipc", EVERYTHING, bins=bins), time_grid("trailing", S, 6)
    assert not policy.likeliest(grid, torch.tensor([3.0])).any()
    drawn = policy.distribution(grid, torch.tensor([3.0])).sample((50,))
    offsets = policy.offsets(drawn)
    assert offsets.shape == (50, 1, 6, 5) and offsets.std() > 0
    assert set(offsets[..., 0].unique().tolist()) <= set(policy.get_buffer("values")[0].tolist())


def test_learned_rows_follow_data_and_noise_that_never_change() -> None:
    for config, start in ((SD, "ab"), (SD, "dpm++2m"), (FLOW, "ab"), (FLOW, "dpm++2m")):
        schedule = NoiseSchedule.from_config(config)
        plan = trained(order=4, start=start).plan(schedule, time_grid("trailing", schedule, 8), 3.0)
        x0, epsilon = torch.eye(2, dtype=torch.float64)
        output = epsilon - x0 if config is FLOW else epsilon
        x, history = plan.alpha[0] * x0 + plan.sigma[0] * epsilon, deque[torch.Tensor](maxlen=plan.columns)
        for i in range(plan.nfe):
            x, q = advance(plan, i, x, output, history)
            history.appendleft(q)
            expected = plan.alpha[i + 1] * x0 + plan.sigma[i + 1] * epsilon
            torch.testing.assert_close(x, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sees", ["run", "step"])
def test_policy_looks_at_what_it_is_to_see(sees: Any) -> None:
    policy = trained(3, sees=sees)
    base = policy(*torch.tensor([[500.0], [400.0], [10.0], [3.0]])).mean
    step = ([600, 400, 10, 3], [500, 300, 10, 3])
    run = ([500, 400, 20, 3], [500, 400, 10, 7])
    for told in (*step, *run):
        same = torch.allclose(policy(*torch.tensor(told)[:, None].float()).mean, base)
        assert same == (sees == "step" and told in run)


def test_guidance_beyond_what_was_trained_is_taken_as_the_nearest() -> None:
    policy, grid = trained(3, guidance=(2.0, 5.0)), time_grid("trailing", S, 5)
    assert policy.plan(S, grid, 9.0) == policy.plan(S, grid, 5.0) != policy.plan(S, grid, 4.0)


def test_rows_can_be_learned() -> Any:
    """A few steps of gradient descent on the weights bring 5 steps nearer to the exact picture."""
    torch.manual_seed(0)
    data = Gaussian(S)
    grid = time_grid("trailing", S, 5)
    policy = Policy(3, "dpm++2m", hidden=16)
    t, alpha, sigma = (v.tolist() for v in (grid.timestep, *S.levels(grid.lam)))
    A, B = (v.tolist() for v in transport("sample", *S.levels(grid.lam)))
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    target = data.x(1.0, 0.0, z)

    def loss() -> torch.Tensor:
        learned = weights(policy, grid)
        x, q = data.x(alpha[0], sigma[0], z), list[torch.Tensor]()
        for i in range(5):
            q.insert(0, (x - sigma[i] * data.output(x, t[i])) / alpha[i])
            x = A[i] * x + B[i] * sum(w * past for w, past in zip(learned[i], q, strict=False))
        return (x - target).square().mean()

    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    before = float(loss().detach())
    for _ in range(30):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
    after = float(loss().detach())
    assert after < before / 4

    plan = policy.plan(S, grid, 3.0)  # and the plan is what was trained
    exact = data.x(plan.alpha[0], plan.sigma[0], z).float()
    picture = sample(plan, lambda x, t: data.output(x, float(t[0])).float(), exact[None])[0]
    assert float((picture - target).square().mean()) == pytest.approx(after, rel=1e-2)


@pytest.mark.parametrize("start", ["ab", "dpm2m", "dpm++2m", "unipc"])
@pytest.mark.parametrize("settings", [{}, {"learns": EVERYTHING, "free": True}, {"bins": 5, "sees": "step"}])
def test_saved_policy_writes_the_same_plans(start: str, settings: Any, tmp_path: Path) -> None:
    policy = trained(3, start, **settings)
    policy.save(tmp_path / "policy.safetensors")
    loaded = load_policy(tmp_path / "policy.safetensors")
    assert loaded.settings == policy.settings
    for steps in (4, 31):
        grid = time_grid("trailing", S, steps)
        assert loaded.plan(S, grid, 7.5) == policy.plan(S, grid, 7.5) != Policy(3, start).plan(S, grid, 7.5)


def test_file_that_is_no_policy_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="is not a policy"):
        load_policy(tmp_path / "x.safetensors")


def test_impossible_policies_are_refused() -> None:
    for message, settings in (
        ("order of a policy is 1 to 32, not 33", {"order": 33}),
        (r"Unknown start 'ddim'; choose one of euler, ab, dpm2m, dpm\+\+2m, unipc", {"start": "ddim"}),
        ("Nothing called 'scale' can be learned; there is rows, grid, times", {"learns": ("rows", "scale")}),
        ("A policy sees one of run, step, not 'all'", {"sees": "all"}),
        ("bins must be 0 or an odd number from 3 on, not 4", {"bins": 4}),
    ):
        with pytest.raises(ValueError, match=message):
            Policy(**settings)
    flow: NoiseSchedule = NoiseSchedule.from_config(FLOW)
    grid: TimeGrid = time_grid("trailing", flow, 4)
    with pytest.raises(ValueError, match="A flow does not know the noise at its start"):
        Policy(2, "dpm2m").plan(flow, grid, 3.0)


def test_make_plan_uses_what_was_learned() -> None:
    table = make_plan("ddim", 5, SD, grid="linspace")
    learned = LearnedSolver((table,), trained(order=3))
    assert make_plan("consistency", 5, SD, learned=learned) == table
    grid = time_grid("trailing", S, 6)
    assert learned.policy is not None
    assert make_plan("consistency", 6, SD, learned=learned, guidance=5.0) == learned.policy.plan(S, grid, 5.0)
    assert make_plan("unipc", 5, SD, learned=learned) == make_plan("unipc", 5, SD)
    assert make_plan("consistency", 6, SD, learned=LearnedSolver((table,))) == make_plan("consistency", 6, SD)


def test_policy_is_asked_for_the_steps_it_was_trained_for_alone() -> None:
    learned = LearnedSolver((), trained(3, steps=(4, 8)))
    for steps in (1, 3, 4, 8, 9, 40):
        untrained = make_plan("consistency", steps, SD, learned=learned) == make_plan(
            "consistency", steps, SD
        )
        assert untrained == (not 4 <= steps <= 8)
