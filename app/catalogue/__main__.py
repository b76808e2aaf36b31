"""Print the models that have a name: python -m app.catalogue [--json]; fetch one: --fetch NAME"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from app.catalogue.decoders import FILES
from app.catalogue.finding import fetch, find
from app.catalogue.fitting import WEIGHT_BYTES, entry_memory, free_memory
from app.catalogue.solvers import solver_folder
from app.catalogue.table import CATALOGUE, CatalogueEntry, ModelError


def describe(entry: CatalogueEntry, device: str, free: int) -> dict[str, Any]:
    """Return an entry's fields for the table and for --json; memory in bytes."""
    return {
        "name": entry.name,
        "source": entry.source,
        "pipeline": entry.pipeline,
        "sizes": entry.sizes,
        "guidance": entry.guidance,
        "guidance_kind": entry.guidance_kind,
        "steps": entry.steps,
        "decoder": entry.decoder,
        "published_solver": entry.published_solver,
        "licence": entry.licence,
        "gated": entry.gated,
        "memory": entry_memory(entry, device),
        "memory_offloaded": entry_memory(entry, device, "model"),
        "fits": entry_memory(entry, device) <= free,
        "here": is_here(entry),
    }


def is_here(entry: CatalogueEntry) -> bool:
    """Whether the model is complete on this machine."""
    try:
        find(entry.name, network=False)
    except ModelError:
        return False
    return True


def get(name: str) -> Path:
    """Download what is missing of a model, its preview decoder and its solver; return its folder."""
    found = find(name)
    if found.entry and found.entry.decoder:
        fetch(found.entry.decoder, network=True, only=FILES)
    solver_folder(found)
    return found.path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m app.catalogue", description=__doc__.split(":")[0] + ".")
    parser.add_argument(
        "--device",
        choices=tuple(WEIGHT_BYTES),
        help="device to compare memory with (cuda if there is one, else cpu)",
    )
    parser.add_argument(
        "--fetch", metavar="NAME", help="download a model by name or hub id, with progress bars"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    if arguments.fetch:
        try:
            folder = get(arguments.fetch)
        except ModelError as error:
            print(error, file=sys.stderr)
            return 2
        print(json.dumps({"folder": str(folder)}) if arguments.json else f"{arguments.fetch} is in {folder}")
        return 0
    import torch

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        free = free_memory(device)
    except (RuntimeError, AssertionError):
        print(f"This machine has no {device} device that PyTorch can use.", file=sys.stderr)
        return 2
    rows = [describe(entry, device, free) for entry in CATALOGUE]
    if arguments.json:
        print(json.dumps({"device": device, "free": free, "models": rows}, indent=1))
        return 0
    columns = {"memory": "memory"} | ({} if device == "cpu" else {"memory_offloaded": "offloaded"})
    heads = "".join(f"{head:>11}" for head in columns.values())
    print(f"{'name':16}{'pixels':>10}{heads}  {'here':5}{'licence':40}source")
    for entry in rows:
        needs = "".join(f"{entry[key] / 2**30:>7.1f} GiB" for key in columns)
        licence = entry["licence"] + (", gated" if entry["gated"] else "")
        pixels = ", ".join(map(str, entry["sizes"]))
        print(
            f"{entry['name']:16}{pixels:>10}{needs}  "
            f"{'yes' if entry['here'] else 'no':5}{licence:40}{entry['source']}"
        )
    print(f"\nMemory is for the device {device}; {free / 2**30:.1f} GiB of it are free.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
