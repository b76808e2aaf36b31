"""Distil the network into a student of few calls, a rival of solvers: `python -m solver student pcm …`.

A student is a copy of the network, trained so that one call a step does what the guided teacher does with two
calls a step and many steps. `pcm` is phased consistency distillation (Wang et al. 2024, arXiv 2405.18407), in
its deterministic form: in each phase of the teacher's grid the student jumps to the phase's end. `lcm` has a
single phase and takes several steps by adding fresh noise (Luo et al. 2023, arXiv 2310.04378). `endtoend` is
trained through all steps of DPM-Solver++ 2M for the teacher's final latents. `python -m solver rivals`
compares students with solvers at equal numbers of network calls. An interrupted run continues when it is
started again. `--out` receives the best weights on the validation pairs and `student.json`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from solver.diffusion import LatentDiffusion, load_diffusion
from solver.grids import TimeGrid, time_grid
from solver.multistep import ddim, multistep
from solver.plan import Plan, convert_prediction
from solver.sampling import Denoiser, sample
from solver.similarity import psnr
from solver.solvers import make_plan
from solver.training.pairs import Pairs, load_pairs
from solver.training.task import save_state

TEACHER_STEPS = 40
STUDENT_FILE, STATE_FILE = "student.json", "state.pt"


@dataclass(frozen=True, eq=False)
class Student:
    """A network that makes pictures in few calls, one a step, without guidance.

    Attributes:
        kind: a key of STUDENTS.
        model: the teacher with the student's network; both share everything else.
        steps: calls for a picture.
    """

    kind: str
    model: LatentDiffusion
    steps: int

    @property
    def plan(self) -> Plan:
        """The solver that the student's outputs are used in."""
        if self.kind == "endtoend":
            return make_plan("dpm++2m", self.steps, self.model.schedule)
        whole = teacher_grid(self.model)
        every = TEACHER_STEPS // self.steps
        grid = TimeGrid(whole.timestep[::every], whole.lam[::every])
        return multistep(ddim(grid.lam)[None], "sample", self.model.schedule, grid).plan(0, "ddim")

    def denoiser(self, pairs: Pairs) -> Denoiser:
        """Return its network for the pairs' prompts, one call for each picture."""
        prompts = [p.prompt for p in pairs.prompts]
        return self.model.denoiser(prompts, torch.ones(len(pairs)), pairs.reference)

    def sample(self, pairs: Pairs) -> Tensor:
        """Return latents from the pairs' noise, [n, C, H, W]."""
        noise, plan = self.model.noise(pairs.seeds), self.plan
        if self.kind != "lcm":
            return sample(plan, self.denoiser(pairs), noise)
        denoise, x = self.denoiser(pairs), noise
        generators = [torch.Generator("cpu").manual_seed(seed + 2**40) for seed in pairs.seeds]
        for i, t in enumerate(plan.timestep):
            c, d = convert_prediction(plan.prediction_type, "sample", plan.alpha[i], plan.sigma[i])
            x0 = c * x + d * denoise(x, torch.full((len(x),), t, device=x.device)).float()
            fresh = torch.stack([torch.randn(x0.shape[1:], generator=g) for g in generators]).to(x0)
            x = plan.alpha[i + 1] * x0 + plan.sigma[i + 1] * fresh
        return x


def teacher_grid(model: LatentDiffusion) -> TimeGrid:
    """Return the grid of the teacher's small steps, to σ = 0."""
    return time_grid("trailing", model.schedule, TEACHER_STEPS)


def phase_end(i: Tensor, phases: int) -> Tensor:
    """Return the end of the phase of step i, both as indices of the teacher's grid."""
    length = TEACHER_STEPS // phases
    return (i // length + 1) * length


def jump(model: LatentDiffusion, x: Tensor, output: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return DDIM's step from index to index of the teacher's grid; from an index to itself it is x exactly.

    Args:
        x, output: states and network outputs there, [B, C, H, W].
        start, end: indices [B], 0 to TEACHER_STEPS.
    """
    ones = [1] * (x.dim() - 1)
    alpha, sigma = (level.float() for level in model.schedule.levels(teacher_grid(model).lam))
    a, s, a_end, s_end = (
        level[index].view(-1, *ones).to(x.device) for index in (start, end) for level in (alpha, sigma)
    )
    c, d = convert_prediction(model.schedule.prediction_type, "sample", a, s)
    x0 = c * x + d * output
    noise = (x - a * x0) / s
    return x + (a_end - a) * x0 + (s_end - s) * noise


def consistency_loss(student: Student, teacher: LatentDiffusion, pairs: Pairs, phases: int) -> Tensor:
    """Return the consistency loss of one random step of each pair, noised from the teacher's final latents.

    The student's jump to the end of the phase must land where it lands from the state one guided teacher step
    further on. At the end of a phase that is the teacher's state itself.
    """
    x0, device = pairs.latents.to(teacher.device), teacher.device
    grid = teacher_grid(teacher)
    alpha, sigma = (level.float() for level in teacher.schedule.levels(grid.lam))
    i = torch.randint(TEACHER_STEPS, (len(pairs),))
    end = phase_end(i, phases)
    ones = [1] * (x0.dim() - 1)
    x = alpha[i].view(-1, *ones).to(device) * x0
    x = x + sigma[i].view(-1, *ones).to(device) * torch.randn(x0.shape).to(device)
    prompts, t = [p.prompt for p in pairs.prompts], grid.timestep.float()
    network = student.denoiser(pairs)
    with torch.no_grad():
        guided = teacher.denoiser(prompts, pairs.guidance, pairs.reference)
        further = jump(teacher, x, guided(x, t[i].to(device)).float(), i, i + 1)
        inside = i + 1 < end
        last = t[(i + 1).clamp(max=TEACHER_STEPS - 1)].to(device)
        at = torch.where(inside, i + 1, i)  # where there is no step left, the jump's result is not used
        landed = jump(teacher, further, network(further, last).float(), at, end)
        target = torch.where(inside.view(-1, *ones).to(device), landed, further)
    landing = jump(teacher, x, network(x, t[i].to(device)).float(), i, end)
    return (landing - target).square().mean()


def pcm_loss(student: Student, teacher: LatentDiffusion, pairs: Pairs) -> Tensor:
    """Return the loss of phased consistency distillation, as many phases as steps."""
    return consistency_loss(student, teacher, pairs, student.steps)


def lcm_loss(student: Student, teacher: LatentDiffusion, pairs: Pairs) -> Tensor:
    """Return the loss of latent consistency distillation, which has one phase."""
    return consistency_loss(student, teacher, pairs, 1)


def endtoend_loss(student: Student, teacher: LatentDiffusion, pairs: Pairs) -> Tensor:
    """Return the squared error of the student's final latents to the teacher's, through all its steps."""
    network, plan = student.denoiser(pairs), student.plan
    x, q = student.model.noise(pairs.seeds), list[Tensor]()
    for i, t in enumerate(plan.timestep):
        timesteps = torch.full((len(x),), t, device=x.device)
        output = checkpoint(network, x, timesteps, use_reentrant=False).float()
        q.insert(0, plan.c[i] * x + plan.d[i] * output)
        x = plan.a[i] * x + sum(b * past for b, past in zip(plan.b[i], q, strict=False))
    return (x - pairs.latents.to(x.device)).square().mean()


Loss = Callable[[Student, LatentDiffusion, Pairs], Tensor]
STUDENTS: dict[str, Loss] = {"pcm": pcm_loss, "lcm": lcm_loss, "endtoend": endtoend_loss}


def new_student(kind: str, teacher: LatentDiffusion, steps: int) -> Student:
    """Return an untrained student, whose weights are the teacher's.

    Raises:
        ValueError: steps that do not divide the teacher's, or a model without classifier-free guidance.
    """
    if steps < 1 or (kind != "endtoend" and TEACHER_STEPS % steps):
        raise ValueError(f"{kind} needs a number of steps that divides {TEACHER_STEPS}, not {steps}.")
    if teacher.guidance_kind != "classifier-free":
        raise ValueError("Students are for models whose guidance takes two calls a step.")
    network = copy.deepcopy(teacher.network).requires_grad_(True)
    return Student(kind, with_network(teacher, network), steps)


def with_network(model: LatentDiffusion, network: Any) -> LatentDiffusion:
    """Return the model with another network."""
    return replace(model, parts={**model.parts, model.network_name: network})


def load_student(folder: Path, teacher: LatentDiffusion) -> Student:
    """Load a student that `train_student` saved.

    Raises:
        FileNotFoundError: no student there.
        ValueError: a student of another model.
    """
    if not (folder / STUDENT_FILE).exists():
        raise FileNotFoundError(
            f"There is no student in {folder}; train one with `python -m solver student`."
        )
    about = json.loads((folder / STUDENT_FILE).read_text(encoding="utf-8"))
    if about["teacher"] != teacher.fingerprint:
        raise ValueError(f"The student in {folder} was trained from another model.")
    network = type(teacher.network).from_pretrained(folder / teacher.network_name).to(teacher.device)
    network.eval().requires_grad_(False)
    return Student(about["kind"], with_network(teacher, network), about["steps"])


@torch.no_grad()
def validate_student(student: Student, pairs: Pairs, batch: int = 16) -> float:
    """Return the mean PSNR in dB of the student's pictures to the teacher's full-step pictures."""
    values = []
    for start in range(0, len(pairs), batch):
        part = pairs.take(range(start, min(start + batch, len(pairs))))
        latents = (student.sample(part), part.latents.to(student.model.device))
        pictures, targets = (student.model.decode(z).float().clamp(0, 1) for z in latents)
        values.append(psnr(pictures, targets).clamp(max=100))
    return float(torch.cat(values).mean())


def train_student(
    student: Student,
    teacher: LatentDiffusion,
    pairs: Pairs,
    validation: Pairs,
    out: Path,
    *,
    iterations: int,
    batch: int,
    learning_rate: float,
    validate_every: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Train a student, save the weights that do best on `validation`, and return what `student.json` records.

    The learning rate follows a half cosine to 0. The state is saved at every validation.

    Raises:
        ValueError: pairs of another model.
    """
    if {pairs.model, validation.model} != {teacher.fingerprint}:
        raise ValueError(
            "The pairs were made by another model; make them again with `python -m solver pairs`."
        )
    out.mkdir(parents=True, exist_ok=True)
    network, loss_of = student.model.network, STUDENTS[student.kind]
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.0)
    best, first, spent, started, losses = -math.inf, 0, 0.0, time.monotonic(), list[float]()
    if (out / STATE_FILE).exists():
        state = torch.load(out / STATE_FILE, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        best, first, spent = state["best"], state["iteration"], state["seconds"]
        losses = state["losses"]
    about: dict[str, Any] = {
        "kind": student.kind,
        "steps": student.steps,
        "calls": student.steps,
        "teacher": teacher.fingerprint,
        "guidance": sorted(set(pairs.guidance.tolist())),
        "pairs": len(pairs),
        "batch": batch,
        "learning_rate": learning_rate,
        "seed": seed,
    }

    def check(iteration: int) -> float:
        network.eval()
        found = validate_student(student, validation)
        if found > best:
            network.save_pretrained(out / teacher.network_name)
        (out / STUDENT_FILE).write_text(
            json.dumps(about | {"iterations": iteration, "psnr_db": max(found, best), "losses": losses})
        )
        seconds = spent + time.monotonic() - started
        state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses}
        state |= {"best": max(found, best), "iteration": iteration, "seconds": seconds}
        save_state(out / STATE_FILE, state)
        return max(found, best)

    with tqdm(range(first, iterations), initial=first, total=iterations, unit="iteration") as bar:
        for iteration in bar:
            if iteration % validate_every == 0:
                best = check(iteration)
            torch.manual_seed(1_000_003 * seed + iteration)
            chosen = random.Random(f"{seed} {iteration}").sample(range(len(pairs)), min(batch, len(pairs)))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * iteration / iterations))
            network.train()
            loss = loss_of(student, teacher, pairs.take(chosen))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            bar.set_postfix(loss=f"{losses[-1]:.4g}", psnr=f"{best:.2f}")
    if first < iterations:
        check(iterations)
    return json.loads((out / STUDENT_FILE).read_text(encoding="utf-8")) | {"out": str(out)}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=STUDENTS)
    parser.add_argument("--model", default="checkpoints/landscapes", help="folder or hub id of the teacher")
    parser.add_argument("--pairs", type=Path, required=True, help="folder of pairs to train on")
    parser.add_argument("--validation", type=Path, required=True, help="folder of pairs to choose weights by")
    parser.add_argument("--out", type=Path, required=True, help="folder for the student and the state")
    parser.add_argument("--steps", type=int, default=4, help="calls for a picture (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=2000, help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="pairs in an iteration (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-5, help="(default: %(default)s)")
    parser.add_argument("--validate-every", type=int, default=100, help="iterations (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help=" ")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    try:
        teacher = load_diffusion(args.model, args.device)
        result = train_student(
            new_student(args.kind, teacher, args.steps),
            teacher,
            load_pairs(args.pairs),
            load_pairs(args.validation),
            args.out,
            iterations=args.iterations,
            batch=args.batch,
            learning_rate=args.learning_rate,
            validate_every=args.validate_every,
            seed=args.seed,
        )
    except (OSError, ValueError) as error:
        parser().error(str(error))
    told = f"{result['psnr_db']:.2f} dB to the full-step pictures at {result['calls']} calls; in {args.out}"
    print(json.dumps(result) if args.json else told)
