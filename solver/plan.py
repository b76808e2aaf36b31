"""A solver written as a table.

Every deterministic linear solver of the probability-flow ODE (DDIM, DPM-Solver and ++, UniPC, DEIS,
Adams-Bashforth, Heun, Euler, a learned multistep method) does the same thing at evaluation i: it combines
the state and the network's outputs so far with fixed numbers,

    output[i] = network(input_scale[i] · x[i], timestep[i])
    q[i]      = c[i] · x[i] + d[i] · output[i]
    x[i+1]    = a[i] · x[i] + Σ_k b[i][k] · q[i-k]

and the state stands at x[i] = alpha[i] · x0 + sigma[i] · ε. The network is told `timestep`, which has the
level (told_alpha, told_sigma) in its schedule, while the ODE stands at (alpha, sigma); in a learned plan they
may differ. `Tables` are many such tables as tensors, `Plan` is one as plain numbers, and docs/plan-format.md
describes its JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

FORMAT, VERSION = "consistency-solver plan", 1
"""What a plan's JSON says it is; docs/plan-format.md describes it."""

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow_prediction")

Mixture = tuple[Any, Any]
"""(p, r) of p · x0 + r · ε; numbers or tensors."""


def as_mixture(prediction: str, alpha: Any, sigma: Any) -> Mixture:
    """Return (p, r) such that a prediction of this type is p · x0 + r · ε at (alpha, sigma).

    Raises:
        ValueError: an unknown prediction type.
    """
    if prediction == "v_prediction":  # Salimans & Ho 2022, v = α·ε - σ·x0
        return -sigma, alpha
    try:
        return {"epsilon": (0.0, 1.0), "sample": (1.0, 0.0), "flow_prediction": (-1.0, 1.0)}[prediction]
    except KeyError:
        known = ", ".join(PREDICTION_TYPES)
        raise ValueError(f"Unknown prediction type {prediction!r}; choose one of {known}.") from None


def combination(target: Mixture, x: Mixture, q: Mixture) -> tuple[Any, Any]:
    """Return (c, d) with target = c · x + d · q, all three mixtures of x0 and ε (Cramer's rule)."""
    determinant = x[0] * q[1] - x[1] * q[0]
    c = (target[0] * q[1] - target[1] * q[0]) / determinant
    d = (x[0] * target[1] - x[1] * target[0]) / determinant
    return c, d


def convert_prediction(source: str, target: str, alpha: Any, sigma: Any) -> tuple[Any, Any]:
    """Return (c, d) with which c · x + d · output turns an output of type `source` into type `target`.

    Args:
        alpha, sigma: signal and noise level of the network's input x; numbers or tensors.

    Raises:
        ValueError: an unknown type, or an output that does not determine the target (x0 from ε at α = 0).
    """
    x, output = (alpha, sigma), as_mixture(source, alpha, sigma)
    if torch.as_tensor(x[0] * output[1] == x[1] * output[0]).any():
        raise ValueError(f"A {source} output cannot be converted to {target} at α = {alpha}, σ = {sigma}.")
    return combination(as_mixture(target, alpha, sigma), x, output)


@dataclass(frozen=True)
class Tables:
    """B tables of N evaluations each as float64 tensors; differentiable. B may be 1 for a batch of any size.

    Attributes:
        prediction_type: what the network puts out.
        timestep, a, c, d, input_scale, told_alpha, told_sigma: [B, N].
        alpha, sigma: [B, N + 1].
        b: [B, N, m], newest output first, zero for outputs that do not exist yet.
    """

    prediction_type: str
    timestep: Tensor
    alpha: Tensor
    sigma: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    input_scale: Tensor
    told_alpha: Tensor
    told_sigma: Tensor
    init_noise_scale: ClassVar[float] = 1.0

    @property
    def numbers(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)[1:]}

    @property
    def requires_grad(self) -> bool:
        """Whether gradients flow into any of its numbers."""
        return any(numbers.requires_grad for numbers in self.numbers.values())

    @property
    def columns(self) -> int:
        """How many outputs, newest first, the rows use at most."""
        return self.b.shape[-1]

    def beside(self, x: Tensor) -> Tables:
        """The same numbers as `x` [B, ...] needs them: evaluations first, float32, one for each sample.

        Every tensor becomes [N, B, 1, ...] (b: [N, m, B, 1, ...]), so that a[i] · x is one product.
        """
        ones = [1] * (x.dim() - 1)
        moved = {name: v.float().to(x.device).movedim(0, -1) for name, v in self.numbers.items()}
        shaped = {name: v.reshape(*v.shape, *ones) for name, v in moved.items()}
        return Tables(self.prediction_type, **shaped)

    def plan(self, row: int, solver: str) -> Plan:
        """One of the B tables as a `Plan` of that name."""
        values: dict[str, Any] = {name: numbers[row].tolist() for name, numbers in self.numbers.items()}
        values["b"] = [weights[: i + 1] for i, weights in enumerate(values["b"])]
        return Plan(solver=solver, prediction_type=self.prediction_type, **values)


@dataclass(frozen=True, slots=True)
class Plan:
    """One solver at one number of steps: N rows, one per network evaluation. Immutable, hashable, comparable.

    Sequences of any kind (lists, arrays) are accepted and kept as tuples of floats.

    Attributes:
        solver: the solver's name, as shown to people.
        prediction_type: what the network puts out: epsilon, sample, v_prediction or flow_prediction.
        timestep: N times the network is told, in units of its training timesteps; need not be integers.
        alpha, sigma: N + 1 signal and noise levels of the state, from the first to the one it ends at.
        a: N weights of the state.
        b: N rows; b[i][k] weighs q[i-k], newest first, at most i + 1 entries (missing ones are zero).
        c, d: N pairs that convert the output to what the rows combine: ε, x0 or a velocity.
        input_scale: N factors between the state and the network's input; 1 unless the plan was read off a
            scheduler that keeps x / α.
        init_noise_scale: x[0] = init_noise_scale · noise, for noise of unit variance.
        told_alpha, told_sigma: N signal and noise levels at `timestep` in the network's noise schedule, for
            programs that tell networks a noise level; those of the network's input where they are not given.

    Raises:
        ValueError: lengths that do not fit, numbers that are not finite, levels below zero.
    """

    solver: str
    prediction_type: str
    timestep: tuple[float, ...]
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    a: tuple[float, ...]
    b: tuple[tuple[float, ...], ...]
    c: tuple[float, ...]
    d: tuple[float, ...]
    input_scale: tuple[float, ...]
    init_noise_scale: float = 1.0
    told_alpha: tuple[float, ...] = ()
    told_sigma: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.timestep)
        lengths = {"alpha": n + 1, "sigma": n + 1, "a": n, "c": n, "d": n, "input_scale": n, "timestep": n}
        for name, length in lengths.items():
            object.__setattr__(self, name, _numbers(name, getattr(self, name), length))
        for name in ("alpha", "sigma"):
            told = getattr(self, f"told_{name}")
            if len(told) == 0:
                told = [s * level for s, level in zip(self.input_scale, getattr(self, name), strict=False)]
            object.__setattr__(self, f"told_{name}", _numbers(f"told_{name}", told, n))
        if n == 0:
            raise ValueError("A plan needs at least one row.")
        if len(self.b) != n:
            raise ValueError(f"b has {len(self.b)} rows for {n} timesteps; give one row per timestep.")
        for i, row in enumerate(self.b):
            if len(row) > i + 1:
                raise ValueError(f"b[{i}] has {len(row)} entries, but only {i + 1} outputs exist by then.")
        rows = tuple(_numbers(f"b[{i}]", row, len(row)) for i, row in enumerate(self.b))
        object.__setattr__(self, "b", rows)
        object.__setattr__(self, "init_noise_scale", float(self.init_noise_scale))
        as_mixture(self.prediction_type, 1.0, 0.0)  # refuses an unknown one
        if not (math.isfinite(self.init_noise_scale) and self.init_noise_scale > 0):
            raise ValueError(f"init_noise_scale must be a positive number, not {self.init_noise_scale}.")
        if min(self.input_scale) <= 0:
            raise ValueError("Every input_scale must be positive.")
        if min(*self.alpha, *self.sigma, *self.told_alpha, *self.told_sigma) < 0:
            raise ValueError("alpha and sigma are levels of signal and noise and cannot be negative.")

    @property
    def nfe(self) -> int:
        """Number of network evaluations, which is the number of rows."""
        return len(self.timestep)

    @property
    def steps(self) -> int:
        """Number of levels at which the network is evaluated: `nfe`, or N for Heun's 2N - 1 evaluations."""
        return len(set(zip(self.alpha[:-1], self.sigma[:-1], strict=True)))

    @property
    def columns(self) -> int:
        """How many outputs, newest first, the rows use at most; older ones can be forgotten."""
        return max((k + 1 for row in self.b for k, weight in enumerate(row) if weight), default=0)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as strings, numbers and lists, ready for JSON (docs/plan-format.md)."""
        return {"format": FORMAT, "version": VERSION, **json.loads(json.dumps(asdict(self)))}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Plan:
        """Make the plan that `to_dict` wrote, now or before it had a version and the levels told.

        Raises:
            ValueError: another format, a newer version, missing or unknown entries, or numbers that make no
                valid plan.
        """
        entries = {key: value for key, value in data.items() if key not in ("format", "version")}
        if data.get("format", FORMAT) != FORMAT:
            raise ValueError(f"Not a plan: its format is {data['format']!r} and not {FORMAT!r}.")
        if data.get("version", VERSION) != VERSION:
            raise ValueError(
                f"The plan has version {data['version']!r} of its format, and this program reads version "
                f"{VERSION}; update the program."
            )
        known = {f.name for f in fields(cls)}
        needed = known if "version" in data else known - {"told_alpha", "told_sigma"}
        missing, unknown = sorted(needed - entries.keys()), sorted(entries.keys() - known)
        if missing or unknown:
            raise ValueError(f"Not a plan: entries missing {missing}, entries unknown {unknown}.")
        return cls(**entries)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON; `load` gives back an equal plan, to the last bit."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan that `save` wrote.

        Raises:
            ValueError: a file that is not JSON or not a plan.
        """
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))

    def table(self) -> str:
        """Return the rows as text, one line per evaluation."""
        lags = range(self.columns)
        head = ["timestep", "alpha", "sigma", "a", "c", "d", *(f"q[i-{k}]" if k else "q[i]" for k in lags)]
        columns = zip(self.timestep, self.alpha, self.sigma, self.a, self.c, self.d, strict=False)
        lines = ["".join(f"{title:>10}" for title in ["i", *head])]
        for i, (numbers, row) in enumerate(zip(columns, self.b, strict=True)):
            weights = (*row, *[0.0] * (len(lags) - len(row)))[: len(lags)]
            lines.append(f"{i:>10}" + "".join(f"{value:>10.4g}" for value in (*numbers, *weights)))
        lines.append(f"{'end':>10}{'':>10}{self.alpha[-1]:>10.4g}{self.sigma[-1]:>10.4g}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"{self.solver}, {self.nfe} evaluations, {self.prediction_type}\n{self.table()}"


def x0_weights(plan: Plan | Tables, i: int) -> tuple[Any, Any]:
    """Return (c, d) with which the picture as predicted at evaluation i is x̂0 = c · x[i] + d · output[i]."""
    scale = plan.input_scale[i]
    c, d = convert_prediction(plan.prediction_type, "sample", scale * plan.alpha[i], scale * plan.sigma[i])
    return c * scale, d


def _numbers(name: str, values: Sequence[float], length: int) -> tuple[float, ...]:
    numbers = tuple(float(value) + 0.0 for value in values)  # + 0.0 turns -0 into 0
    if len(numbers) != length:
        raise ValueError(f"{name} has {len(numbers)} entries where {length} are needed.")
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} holds a number that is not finite: {numbers}.")
    return numbers
