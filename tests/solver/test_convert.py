"""The published weights become a solver that does what their formulas say, or are refused in words."""

import itertools
import json
import math
import pickle
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from solver import (
    ConsistencySolverScheduler,
    LearnedSolver,
    NoiseSchedule,
    Plan,
    advance,
    convert,
    make_plan,
    sample,
)
from solver.evaluation.evaluate import check_fair
from solver.grids import grid_at_timesteps, time_grid
from solver.paper import PAPER_POLICIES, PaperFlowPolicy, PaperPolicy, load_policy
from tests.solver.toys import FLOW, NOISE, SD, network, relative_error

S = NoiseSchedule.from_config(SD)
SPANS: list[tuple[float, float]] = [(0.0, 2.0), (-2.0, 0.0), (-1.0, 1.0), (-1.0, 1.0)]
FLOW_SPANS: list[tuple[float, float]] = [(0.0, 1.0), *SPANS[1:]]
KONTEXT = {"use_flow_sigmas": True, "use_dynamic_shifting": True, "flow_shift": 3.0}


def published(
    order: int = 4, values: int = 11, hidden: int = 256, spans: list[tuple[float, float]] = SPANS
) -> dict[str, torch.Tensor]:
    """A state dict of the published kind, with a network that decides differently at every step."""
    generator = torch.Generator().manual_seed(order)
    rows = order - 1
    shapes = {"0": (hidden, 2), "2": (hidden, hidden), "4": (rows * values, hidden)}
    state = {}
    for layer, shape in shapes.items():
        scale = 6 / math.sqrt(shape[1])
        state[f"mlp.{layer}.weight"] = scale * torch.randn(shape, generator=generator)
        state[f"mlp.{layer}.bias"] = torch.randn(shape[:1], generator=generator)
    state["action_values"] = torch.stack([torch.linspace(*span, values) for span in spans[:rows]])
    return state


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save(published(), tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


def reference_weights(state: dict[str, torch.Tensor], now: float, after: float, outputs: int) -> list[float]:
    """The weights of one step, newest output first, from the published formulas.

    `now` and `after` are what its network sees: t / 999, or on a flow σ.
    """
    x = torch.tensor([now, after], dtype=torch.float32)
    for layer in ("0", "2", "4"):
        x = state[f"mlp.{layer}.weight"] @ x + state[f"mlp.{layer}.bias"]
        x = x.relu() if layer != "4" else x
    values = state["action_values"]
    chosen = x.reshape(values.shape).argmax(dim=1)
    weights = [float(row[i]) for row, i in zip(values.double(), chosen, strict=True)]
    weights[0] += 1
    kept = weights[: outputs - 1]
    return [*kept, 1 - sum(kept)]


def reference_sample(state: dict[str, torch.Tensor], N: int, noise: torch.Tensor) -> torch.Tensor:
    """y[i+1] = y[i] + (n[i+1] - n[i]) Σ w ε on the trailing grid, to the level of ᾱ[0]; all in float64."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    cumprod = (1 - betas).cumprod(0)
    order = len(state["action_values"]) + 1
    timesteps = [*(np.round(np.arange(1000, 0, -1000 / N)).astype(int) - 1)[:N], -1]
    x, past = noise.double(), list[torch.Tensor]()
    for t, t_next in itertools.pairwise(timesteps):
        now, after = cumprod[t], cumprod[max(t_next, 0)]
        past = [network(x, torch.tensor(float(t))), *past][:order]
        weights = reference_weights(state, t / 999, t_next / 999, len(past))
        epsilon = sum(w * output for w, output in zip(weights, past, strict=True))
        y = x / now.sqrt() + (((1 - after) / after).sqrt() - ((1 - now) / now).sqrt()) * epsilon
        x = after.sqrt() * y
    return x


def follow(plan: Plan, noise: torch.Tensor) -> torch.Tensor:
    """`sample` in float64, since random weights magnify what is rounded."""
    x, past = noise.double(), deque[torch.Tensor](maxlen=plan.columns)
    for i, t in enumerate(plan.timestep):
        x, q = advance(plan, i, x, network(x, torch.tensor(t)), past)
        past.appendleft(q)
    return x


@pytest.mark.parametrize(("order", "values"), [(2, 3), (3, 161), (4, 11), (5, 11)])
def test_plans_are_the_published_formulas_at_every_number_of_steps(
    order: int, values: Any, tmp_path: Path
) -> None:
    state = published(order, values)
    torch.save(state, tmp_path / "model.ckpt")
    convert.convert(tmp_path / "model.ckpt", tmp_path / "out")
    learned = LearnedSolver.load(tmp_path / "out")
    seen = set()
    for N in range(1, 51) if order == 4 else (2, 7, 15):
        plan = make_plan("consistency", N, S, learned=learned)
        told = [*plan.timestep, -1]
        for i in range(N):
            expected = reference_weights(state, told[i] / 999, told[i + 1] / 999, min(i + 1, order))
            step = plan.alpha[i + 1] * (plan.sigma[i + 1] / plan.alpha[i + 1] - plan.sigma[i] / plan.alpha[i])
            assert [b / step for b in plan.b[i][:order]] == pytest.approx(expected, abs=1e-6)
            seen.add(tuple(expected))
        assert (plan.alpha[-1], plan.sigma[-1]) == (plan.alpha[-1], pytest.approx(float(S.sigma(0))))
        assert relative_error(follow(plan, NOISE), reference_sample(state, N, NOISE)) < 1e-6
    assert len(seen) > order  # the network does decide


def flow_sigmas(N: int, mu: float) -> list[float]:
    """The noise levels of N steps of FLUX.1 Kontext: 1, 1 - 1/N, … shifted by mu, and 0."""
    even = np.linspace(1, 1 / N, N)
    return [*(math.exp(mu) / (math.exp(mu) + 1 / even - 1)), 0.0]


def reference_flow_sample(
    state: dict[str, torch.Tensor], sigmas: list[float], noise: torch.Tensor
) -> torch.Tensor:
    """x[i+1] = x[i] + (σ[i+1] - σ[i]) Σ w v in float64."""
    order = len(state["action_values"]) + 1
    x, past = noise.double(), list[torch.Tensor]()
    for now, after in itertools.pairwise(sigmas):
        past = [network(x, torch.tensor(1000 * now)), *past][:order]
        weights = reference_weights(state, now, after, len(past))
        x = x + (after - now) * sum(w * v for w, v in zip(weights, past, strict=True))
    return x


@pytest.mark.parametrize(("order", "values"), [(2, 11), (3, 161), (4, 11)])
@pytest.mark.parametrize("mu", [0.5, 1.15])
def test_plans_on_a_flow_are_the_published_formulas_at_every_number_of_steps(
    order: int, values: int, mu: float, tmp_path: Path
) -> None:
    state = published(order, values, spans=FLOW_SPANS)
    torch.save(state, tmp_path / "model.ckpt")
    _, kind = convert.convert(tmp_path / "model.ckpt", tmp_path / "out")
    assert (kind.model, kind.guidance) == ("FLUX.1 Kontext", 2.5)
    learned = LearnedSolver.load(tmp_path / "out")
    schedule = NoiseSchedule.from_config(KONTEXT, mu=mu)
    assert learned.mismatch(schedule, 2.5) == ""
    seen = set()
    for N in range(1, 51) if order == 2 else (2, 3, 7, 28):
        plan, sigmas = make_plan("consistency", N, schedule, learned=learned), flow_sigmas(N, mu)
        assert plan.sigma == pytest.approx(sigmas, abs=2e-6)  # a flow starts at σ = 1 - 1e-6 here
        for i in range(N):
            expected = reference_weights(state, sigmas[i], sigmas[i + 1], min(i + 1, order))
            step = plan.sigma[i + 1] - plan.sigma[i]
            assert [b / step for b in plan.b[i][:order]] == pytest.approx(expected, abs=1e-5)
            seen.add(tuple(expected))
        expected_sample = reference_flow_sample(state, sigmas, NOISE)
        assert relative_error(follow(plan, NOISE), expected_sample) < 1e-4
    assert len(seen) > order


def test_a_converted_flow_policy_draws_with_the_published_odds(tmp_path: Path) -> None:
    """The authors' flow code draws from softmax(logits / 0.01)."""
    state = published(2, spans=FLOW_SPANS)
    state = {name: tensor * (0.01 if name.startswith("mlp.4") else 1) for name, tensor in state.items()}
    torch.save(state, tmp_path / "model.ckpt")
    policy, _ = convert.read_published(tmp_path / "model.ckpt")
    x = torch.tensor([0.7, 0.4])
    for layer in ("0", "2", "4"):
        x = state[f"mlp.{layer}.weight"] @ x + state[f"mlp.{layer}.bias"]
        x = x.relu() if layer != "4" else x
    one = torch.ones(1)
    drawn = policy(700 * one, 400 * one, 3 * one, 2.5 * one)
    torch.testing.assert_close(drawn.probs[0, 0], (x / 0.01).softmax(0), rtol=1e-4, atol=1e-6)


def test_integer_division_leaves_the_grid_where_the_page_says() -> None:
    """The authors take t - 1000 // N for the next time; the page names the N that it misses."""

    def misses(N: int) -> bool:
        t = (np.round(np.arange(1000, 0, -1000 / N)).astype(int) - 1)[:N]
        return bool((t - 1000 // N != np.append(t[1:], -1)).any())

    missed = [N for N in range(1, 51) if misses(N)]
    ends = [N for N in missed if N - 1 not in missed], [N for N in missed if N + 1 not in missed]
    ranges = [str(a) if a == b else f"{a}–{b}" for a, b in zip(*ends, strict=True)]
    page = (Path(__file__).parents[2] / "docs" / "stable-diffusion.md").read_text(encoding="utf-8")
    assert f"for {', '.join(ranges[:-1])} and {ranges[-1]} steps" in " ".join(page.split())


def test_what_is_written_is_a_scheduler_like_any_trained_one(checkpoint: Any, tmp_path: Path) -> None:
    convert.convert(checkpoint, tmp_path / "out")
    scheduler = ConsistencySolverScheduler.from_pretrained(tmp_path / "out")
    learned = LearnedSolver.load(tmp_path / "out")
    assert scheduler.config.guidance == 3.0
    for timesteps in ({"num_inference_steps": 7}, {"timesteps": [999.0, 700.0, 320.0, 40.0]}):
        scheduler.set_timesteps(**timesteps)
        x = NOISE
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t.expand(len(x))), t, x).prev_sample
        assert relative_error(x, sample(scheduler.plan, network, NOISE)) < 1e-5
    assert learned.plan(7, S) == LearnedSolver.load(tmp_path / "out").plan(7, S)  # never drawn
    check_fair(learned.plan(8, S), 8, make_plan("dpm++2m", 40, S))


def test_a_policy_of_the_papers_kind_can_be_trained_here_too(tmp_path: Path) -> None:
    policy = PaperPolicy(4, bins=11, hidden=256)
    assert policy.state_dict().keys() >= {key for key in published() if key != "action_values"}
    assert torch.equal(policy.get_buffer("values"), published()["action_values"])
    distribution = policy.distribution(grid_at_timesteps([999.0, 499.0], S), torch.tensor([3.0]))
    assert torch.allclose(distribution.entropy(), torch.tensor(11.0).log())  # every bin alike


@pytest.mark.parametrize("kind", PAPER_POLICIES.values())
def test_the_continuous_twin_starts_as_eulers_method(kind: type[PaperPolicy], tmp_path: Path) -> None:
    twin = kind(3, bins=0, hidden=8)
    schedule = NoiseSchedule.from_config(FLOW) if kind is PaperFlowPolicy else S
    grid = time_grid("trailing", schedule, 5)
    plan, euler = twin.plan(schedule, grid, 3.0), make_plan("euler", 5, schedule)
    assert plan.sigma[-1] == pytest.approx(0 if schedule.is_flow else float(schedule.sigma(0)))
    for row, expected in zip(plan.b[:-1], euler.b, strict=False):
        assert [w for w in row if w] == pytest.approx([w for w in expected if w])
    twin.save(tmp_path / "policy.safetensors")
    assert load_policy(tmp_path / "policy.safetensors").settings == twin.settings
    assert isinstance(load_policy(tmp_path / "policy.safetensors"), kind)


def test_models_it_was_not_learned_for_are_named(checkpoint: Any, tmp_path: Path) -> None:
    convert.convert(checkpoint, tmp_path / "out")
    learned = LearnedSolver.load(tmp_path / "out")
    assert learned.mismatch(S, 3.0) == ""
    for config, guidance, words in (
        (SD, 7.5, "guidance scales of 3, and 7.5 is asked for"),
        ({**SD, "beta_end": 0.02}, 3.0, "another noise schedule"),
        (
            {**SD, "prediction_type": "v_prediction"},
            3.0,
            "predicts epsilon, and this one predicts v_prediction",
        ),
        (FLOW, 3.0, "variance-preserving model, and this is a flow-matching one"),
    ):
        assert words in learned.mismatch(NoiseSchedule.from_config(config), guidance)


class Trap:
    def __reduce__(self) -> Any:
        return (print, ("executed",))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def resave(change: Any) -> Any:
    def damage(path: Path) -> None:
        state = published()
        change(state)
        torch.save(state, path)

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "cut off, or another kind of file"),
        (lambda path: path.write_bytes(b""), "cut off, or another kind of file"),
        (lambda path: path.write_text("<html>404</html>"), "cut off, or another kind of file"),
        (lambda path: path.write_bytes(pickle.dumps(Trap(), protocol=2)), "was not loaded"),
        (lambda path: torch.save({"state_dict": Trap()}, path), "was not loaded"),
        (lambda path: save_file(published(), path), "is a safetensors file"),
        (lambda path: torch.save([1, 2], path), "holds a list"),
        (
            lambda path: torch.save({"unet.weight": torch.zeros(2)}, path),
            "Missing: action_values, mlp.0.bias",
        ),
        (resave(lambda s: s.update(extra=torch.zeros(1))), "not known: extra"),
        (resave(lambda s: s["mlp.2.bias"].__setitem__(3, torch.nan)), "mlp.2.bias .* not finite"),
        (
            resave(lambda s: s.update({"mlp.4.bias": torch.zeros(32)})),
            r"mlp.4.bias .*\[32\].* must be \[33\]",
        ),
        (
            resave(lambda s: s.update({"mlp.0.weight": torch.zeros(256, 5)})),
            r"mlp.0.weight .* must be \[256, 2\]",
        ),
        (resave(lambda s: s.update(action_values=torch.zeros(33))), "must be .order - 1, values"),
        (resave(lambda s: s["action_values"][2].mul_(0.05)), "Row 2 of action_values .* mean something else"),
        (resave(lambda s: s["action_values"][0].mul_(2)), "Row 0 of .* from 0 to 4, .* 0 to 2 or 0 to 1"),
        (resave(lambda s: s.update({"mlp.0.bias": 3})), "mlp.0.bias .* is not a tensor"),
        (lambda path: torch.save(published(values=10), path), "odd number"),
        (lambda path: (path.unlink(), path.mkdir()), "is a folder"),
    ],
)
def test_wrong_files_are_refused_with_a_message(
    damage: Any, words: Any, checkpoint: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(checkpoint)
    with pytest.raises(ValueError, match=words):
        convert.convert(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "executed" not in capsys.readouterr().out


def test_a_large_file_is_not_even_opened(checkpoint: Any, tmp_path: Path) -> None:
    with checkpoint.open("ab") as file:
        file.truncate(4 * 2**30)  # a hole, as large as a checkpoint of Stable Diffusion
    with pytest.raises(ValueError, match="4,096 MB, and the published solver less than one"):
        convert.convert(checkpoint, tmp_path / "out")


def test_command(checkpoint: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "solver.convert", str(checkpoint), str(tmp_path / "out"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert done.returncode == 0 and (found["order"], found["values"], found["guidance"]) == (4, 11, 3.0)


def test_command_refuses_with_a_message(
    checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
        assert convert.main() == 2
        return capsys.readouterr().err

    assert "nowhere.ckpt: No such file" in run(tmp_path / "nowhere.ckpt", tmp_path / "out")
    convert.convert(checkpoint, tmp_path / "out")
    kept = (tmp_path / "out" / "policy.safetensors").read_bytes()
    assert "holds a solver already" in run(checkpoint, tmp_path / "out")
    assert (tmp_path / "out" / "policy.safetensors").read_bytes() == kept
    cut(checkpoint)
    assert "cut off" in run(checkpoint, tmp_path / "other")
