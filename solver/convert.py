"""Read the published ConsistencySolver weights: `python -m solver convert model.ckpt OUT`.

The paper's authors published the policy for Stable Diffusion 1.5 as `model.ckpt` in the hub repository
`wangfuyun/consolver` (`hf download wangfuyun/consolver model.ckpt --local-dir .` fetches it). It becomes
a `ConsistencySolverScheduler` in the folder OUT, as `solver.training.train` leaves one: copied to
`<model>/solver/`, the app uses it. In each step it takes the likeliest decision, where the authors' code
draws one, and it stays on the exact trailing grid.

Nothing in the file is executed: it is read as tensors alone.
"""

from __future__ import annotations

import argparse
import json
import pickle
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solver.consistency import CONFIG_FILE, POLICY_FILE
from solver.paper import PaperPolicy, paper_values

REPOSITORY, FILE = "wangfuyun/consolver", "model.ckpt"

TIMESTEPS = 1000
# What it was trained for: Stable Diffusion 1.5's noise schedule, at one guidance scale.
SCHEDULE = {
    "num_train_timesteps": TIMESTEPS,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}
GUIDANCE = 3.0

LAYERS = (0, 2, 4)
VALUES = "action_values"
KEYS = (*(f"mlp.{i}.{part}" for i in LAYERS for part in ("weight", "bias")), VALUES)
MAX_BYTES = 64 * 2**20  # the published file has less than one MB


def convert(path: str | Path, out: str | Path) -> PaperPolicy:
    """Write the solver in the published file `path` as a new folder `out`, and return its policy.

    Raises:
        FileExistsError: `out` holds a solver already.
        OSError: a file that can't be read, or a folder that can't be written.
        ValueError: a file that is not the published kind (says what is wrong with it).
    """
    from solver.scheduler import ConsistencySolverScheduler

    out = Path(out)
    if (out / CONFIG_FILE).exists() or (out / POLICY_FILE).exists():
        raise FileExistsError(f"{out} holds a solver already; choose another folder.")
    policy = read_published(path)
    scheduler = ConsistencySolverScheduler(**SCHEDULE, guidance=GUIDANCE)
    scheduler.policy = policy
    scheduler.save_pretrained(out)
    return policy


def read_published(path: str | Path) -> PaperPolicy:
    """The policy in a file of the published kind, for any number of steps, on the CPU.

    Its order and bins are taken from the file's shapes.

    Raises:
        OSError: no such file, or one that can't be read.
        ValueError: a file of another kind (says what is wrong with it).
    """
    path = Path(path)
    tensors = _checked(_read_tensors(path), path)
    rows, bins = tensors[VALUES].shape
    policy = PaperPolicy(
        order=rows + 1,
        bins=bins,
        hidden=tensors["mlp.0.bias"].numel(),
        guidance=(GUIDANCE, GUIDANCE),
        num_train_timesteps=TIMESTEPS,
    )
    layers = {name: tensor.float() for name, tensor in tensors.items() if name != VALUES}
    policy.load_state_dict(policy.state_dict() | layers)
    return policy.eval()


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
    for i, (here, published) in enumerate(zip(values.float(), paper_values(rows, bins), strict=True)):
        if not torch.allclose(here, published, rtol=0, atol=1e-4):
            raise ValueError(
                f"Row {i} of {VALUES} in {path} runs from {here[0]:g} to {here[-1]:g}, where the published "
                f"solver's runs evenly from {published[0]:g} to {published[-1]:g}: these decisions mean "
                "something else."
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
        policy = convert(arguments.checkpoint, arguments.out)
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
        "guidance": GUIDANCE,
    }
    if arguments.json:
        print(json.dumps(found))
    else:
        print(
            f"{arguments.out} holds a solver of order {policy.order}, each weight one of {policy.bins}, for "
            f"Stable Diffusion 1.5 at guidance {GUIDANCE:g}.\nCopy it to <model>/solver/ and the app uses it."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
