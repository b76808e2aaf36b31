"""Read weights of the paper's authors' code: `python -m solver convert model.ckpt OUT`.

They published the policy for Stable Diffusion 1.5 as `model.ckpt` in the hub repository `wangfuyun/consolver`
(`hf download wangfuyun/consolver model.ckpt --local-dir .` fetches it). Their variant for FLUX.1 Kontext
saves files of the same kind, which differ in the values to choose from. A file becomes a
`ConsistencySolverScheduler` in the folder OUT, as `solver.training.train` leaves one: copied to
`<model>/solver/`, the app uses it. In each step it takes the likeliest decision, where the authors' code
draws one, and it stays on the exact grid.

Nothing in the file is executed: it is read as tensors alone.
"""

from __future__ import annotations

import argparse
import json
import pickle
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solver.consistency import CONFIG_FILE, POLICY_FILE
from solver.paper import PaperFlowPolicy, PaperPolicy

REPOSITORY, FILE = "wangfuyun/consolver", "model.ckpt"

TIMESTEPS = 1000


@dataclass(frozen=True)
class Kind:
    """A model that the authors' code trained a policy for.

    Attributes:
        model: its name.
        policy: class of its policy.
        schedule: config of its noise schedule.
        guidance: the one scale that it was trained at.
        sharpness: factor on the logits; the decisions do not depend on it, the odds of a drawn one do.
    """

    model: str
    policy: type[PaperPolicy]
    schedule: Mapping[str, Any]
    guidance: float
    sharpness: float = 1.0


KINDS = (
    Kind(
        "Stable Diffusion 1.5",
        PaperPolicy,
        {
            "num_train_timesteps": TIMESTEPS,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "prediction_type": "epsilon",
        },
        guidance=3.0,
    ),
    Kind(
        "FLUX.1 Kontext",
        PaperFlowPolicy,
        {
            "num_train_timesteps": TIMESTEPS,
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "use_dynamic_shifting": True,
        },
        guidance=2.5,
        sharpness=100.0,  # softmax(logits / 0.01)
    ),
)

LAYERS = (0, 2, 4)
VALUES = "action_values"
KEYS = (*(f"mlp.{i}.{part}" for i in LAYERS for part in ("weight", "bias")), VALUES)
MAX_BYTES = 64 * 2**20  # the published file has less than one MB


def convert(path: str | Path, out: str | Path) -> tuple[PaperPolicy, Kind]:
    """Write the solver in the published file `path` as a new folder `out`; return its policy and its kind.

    Raises:
        FileExistsError: `out` holds a solver already.
        OSError: a file that can't be read, or a folder that can't be written.
        ValueError: a file that is not the published kind (says what is wrong with it).
    """
    from solver.scheduler import ConsistencySolverScheduler

    out = Path(out)
    if (out / CONFIG_FILE).exists() or (out / POLICY_FILE).exists():
        raise FileExistsError(f"{out} holds a solver already; choose another folder.")
    policy, kind = read_published(path)
    scheduler = ConsistencySolverScheduler(**kind.schedule, guidance=kind.guidance)
    scheduler.policy = policy
    scheduler.save_pretrained(out)
    return policy, kind


def read_published(path: str | Path) -> tuple[PaperPolicy, Kind]:
    """Read the policy in a file of the published kind, for any number of steps, on the CPU.

    Its order and bins are taken from the file's shapes, its kind from the values to choose from.

    Raises:
        OSError: no such file, or one that can't be read.
        ValueError: a file of another kind (says what is wrong with it).
    """
    path = Path(path)
    tensors = _checked(_read_tensors(path), path)
    rows, bins = tensors[VALUES].shape
    kind = _kind_of(tensors[VALUES], path)
    policy = kind.policy(
        order=rows + 1,
        bins=bins,
        hidden=tensors["mlp.0.bias"].numel(),
        guidance=(kind.guidance, kind.guidance),
        num_train_timesteps=TIMESTEPS,
    )
    layers = {name: tensor.float() for name, tensor in tensors.items() if name != VALUES}
    for name in ("mlp.4.weight", "mlp.4.bias"):
        layers[name] = kind.sharpness * layers[name]
    policy.load_state_dict(policy.state_dict() | layers)
    return policy.eval(), kind


def _kind_of(values: Tensor, path: Path) -> Kind:
    """Return the kind with these values to choose from, [order - 1, values]."""
    values = values.float()
    for kind in KINDS:
        if torch.allclose(values, kind.policy.choices(*values.shape), rtol=0, atol=1e-4):
            return kind
    # Only the first row differs between the kinds, so any of them shows which one is wrong.
    known = KINDS[0].policy.choices(*values.shape)
    row = next((i for i in range(1, len(values)) if not torch.allclose(values[i], known[i], atol=1e-4)), 0)
    spans = dict.fromkeys(
        f"{span[0]:g} to {span[-1]:g}" for span in (k.policy.choices(*values.shape)[row] for k in KINDS)
    )
    raise ValueError(
        f"Row {row} of {VALUES} in {path} runs from {values[row][0]:g} to {values[row][-1]:g}, where the "
        f"published solvers' run evenly from {' or '.join(spans)}: these decisions mean something else."
    )


def _read_tensors(path: Path) -> Mapping[str, Any]:
    size = path.stat().st_size
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the file {FILE} in it.")
    if size > MAX_BYTES:
        raise ValueError(
            f"{path} has {size / 2**20:,.0f} MB, and the published solver less than one: this is something "
            f"else. It is {FILE} of the hub repository {REPOSITORY} that is read here."
        )
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] <= size:
        raise ValueError(
            f"{path} is a safetensors file, and the published solver is a PyTorch checkpoint ({FILE}). "
            "A solver trained here needs no conversion."
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or "global" in str(error):
            raise ValueError(
                f"{path} holds more than tensors, and loading it could run code, so it was not loaded. "
                f"Take {FILE} of the hub repository {REPOSITORY}."
            ) from error
        raise ValueError(_damaged(path)) from error
    # What a damaged file raises depends on where the damage is.
    except Exception as error:
        raise ValueError(_damaged(path)) from error


def _damaged(path: Path) -> str:
    return (
        f"{path} can't be read as a PyTorch checkpoint: it is cut off, or another kind of file. Fetch it "
        f"again: `hf download {REPOSITORY} {FILE} --local-dir .`"
    )


def _checked(found: Any, path: Path) -> dict[str, Tensor]:
    """The tensors, once they are what they must be."""
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} holds a {type(found).__name__}, not the named tensors of a solver.")
    missing = [key for key in KEYS if key not in found]
    unknown = [str(key) for key in found if key not in KEYS]
    if missing or unknown:
        raise ValueError(
            f"{path} is not the published solver. Missing: {_some(missing)}; not known: {_some(unknown)}."
        )
    for key in KEYS:
        tensor = found[key]
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise ValueError(f"{key} in {path} is not a tensor of real numbers.")
        if not tensor.isfinite().all():
            raise ValueError(f"{key} in {path} holds numbers that are not finite: the weights are damaged.")
    values, hidden = found[VALUES], found["mlp.0.bias"].numel()
    if values.dim() != 2 or values.numel() == 0:
        raise ValueError(
            f"{VALUES} in {path} has the shape {[*values.shape]}; it must be [order - 1, values]."
        )
    rows, bins = values.shape
    shapes = {
        "mlp.0.weight": (hidden, 2),
        "mlp.0.bias": (hidden,),
        "mlp.2.weight": (hidden, hidden),
        "mlp.2.bias": (hidden,),
        "mlp.4.weight": (rows * bins, hidden),
        "mlp.4.bias": (rows * bins,),
    }
    for key, shape in shapes.items():
        if tuple(found[key].shape) != shape:
            raise ValueError(
                f"{key} in {path} has the shape {[*found[key].shape]}; with {hidden} hidden units and {rows} "
                f"decisions of {bins} values it must be {[*shape]}."
            )
    return dict(found)


def _some(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:4]) or "nothing"
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help=f"the published file, {FILE}")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder for the solver")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    arguments = parser.parse_args()
    try:
        policy, kind = convert(arguments.checkpoint, arguments.out)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.strerror else str(error)
        print(f"Can't convert: {reason}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"Can't convert: {error}", file=sys.stderr)
        return 2
    found = {
        "out": str(arguments.out),
        "order": policy.order,
        "values": policy.bins,
        "parameters": sum(weight.numel() for weight in policy.mlp.parameters()),
        "guidance": kind.guidance,
        "model": kind.model,
    }
    if arguments.json:
        print(json.dumps(found))
    else:
        print(
            f"{arguments.out} holds a solver of order {policy.order}, each weight one of {policy.bins}, for "
            f"{kind.model} at guidance {kind.guidance:g}.\nCopy it to <model>/solver/ and the app uses it."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
