"""Plans for other programs: `consistency-solver export --to comfyui FOLDER`, `--to json FILE`, …

A file holds one plan for each number of steps (docs/plan-format.md). The folders are those of integrations/,
ready to be put into the program, with the plans of `--learned` beside those that come along.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from solver import LearnedSolver, Plan
from solver.consistency import CONFIG_FILE

FORMAT, VERSION = "consistency-solver plans", 1
HERE = Path(__file__).parent
# Folder of the program's part here, and a file that shows that a folder is one of ours already.
FOLDERS = {"comfyui": ("comfyui", "nodes.py"), "forge": ("forge", "scripts/consistency_solver.py")}
MAX_STEPS = 20


def learned_plans(learned: LearnedSolver, steps: Sequence[int] | None, guidance: float) -> list[Plan]:
    """The plans of a learned solver for these numbers of steps, by default for all up to 20 that it has.

    Raises:
        ValueError: a number of steps that it has nothing for, or nothing at all.
    """
    covered = [N for N in range(2, MAX_STEPS + 1) if learned.covers(N)]
    unknown = [N for N in steps or () if not learned.covers(N)]
    if unknown or not covered:
        raise ValueError(
            f"Nothing was learned for {', '.join(map(str, unknown))} steps."
            if unknown
            else f"Nothing was learned for 2 to {MAX_STEPS} steps."
        )
    schedule = learned.schedule
    if schedule is None:
        raise ValueError("The learned solver does not say for which noise schedule it was learned.")
    return [learned.plan(N, schedule, guidance=guidance) for N in steps or covered]


def plan_file(name: str, about: str, plans: Sequence[Plan]) -> dict[str, Any]:
    """The JSON of a file of plans, ready to be written."""
    entries = [plan.to_dict() for plan in plans]
    return {"format": FORMAT, "version": VERSION, "name": name, "about": about, "plans": entries}


def write_plan_file(path: Path, file: dict[str, Any]) -> None:
    """Write a file of plans, one entry of a plan to a line."""

    def plan(entry: dict[str, Any]) -> str:
        return "{\n" + ",\n".join(f"   {json.dumps(k)}: {json.dumps(v)}" for k, v in entry.items()) + "\n  }"

    head = [f" {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in file.items() if k != "plans"]
    plans = (
        "["
        + ",".join(f"\n  {plan(entry)}" for entry in file["plans"])
        + ("\n " if file["plans"] else "")
        + "]"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join([*head, f' "plans": {plans}']) + "\n}\n", encoding="utf-8")


def write_folder(program: str, out: Path, file: dict[str, Any] | None) -> None:
    """Copy a program's part to `out`, with one more file of plans. Plans that are there stay.

    Raises:
        FileExistsError: a folder with something else in it.
    """
    source, mark = FOLDERS[program]
    if out.exists() and not (out / mark).is_file() and any(out.iterdir()):
        raise FileExistsError(f"{out} holds something else; choose a new folder.")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(HERE / source, out, dirs_exist_ok=True, ignore=ignore)
    if file is not None:
        write_plan_file(out / "plans" / f"{_file_name(file['name'])}.json", file)


def write_scheduler(out: Path, learned: Path | None, file: dict[str, Any] | None) -> None:
    """Write a folder that diffusers loads: the scheduler's file, and its config with the plans as tables."""
    from integrations.diffusers.scheduling_consistency_solver import ConsistencySolverScheduler

    if (out / CONFIG_FILE).exists():
        raise FileExistsError(f"{out} holds a scheduler already; choose a new folder.")
    config: dict[str, Any] = {}
    if learned is not None:
        theirs = json.loads((learned / CONFIG_FILE).read_text(encoding="utf-8"))
        config = {key: value for key, value in theirs.items() if key not in ("tables", "policy_file")}
    tables = file["plans"] if file else None
    scheduler = ConsistencySolverScheduler.from_config(config, tables=tables)
    scheduler.save_pretrained(out)
    shutil.copy(HERE / "diffusers" / "scheduling_consistency_solver.py", out)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.]+", "-", name).strip("-.").lower() or "plans"


def _solver_folder(path: Path) -> Path:
    """The folder of a learned solver, given it or its model's."""
    return path / "solver" if (path / "solver" / CONFIG_FILE).is_file() else path


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", required=True, choices=["json", *FOLDERS, "diffusers"], help="the program")
    parser.add_argument("out", type=Path, metavar="OUT", help="the file (json), or the folder, to write")
    parser.add_argument("--learned", type=Path, metavar="DIR", help="a learned solver, or its model's folder")
    parser.add_argument("--steps", type=int, nargs="+", metavar="N", help="default: all it was learned for")
    parser.add_argument("--guidance", type=float, default=3.0, help="scale that a policy is told (default 3)")
    parser.add_argument("--name", help="the model's name; default: its folder's")
    arguments = parser.parse_args()
    try:
        return _run(arguments)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.strerror else str(error)
        print(f"Can't export: {reason}", file=sys.stderr)
    except (ValueError, KeyError) as error:
        print(f"Can't export: {error}", file=sys.stderr)
    return 2


def _run(arguments: argparse.Namespace) -> int:
    folder = arguments.learned and _solver_folder(arguments.learned)
    file = None
    if folder:
        learned = LearnedSolver.load(folder)
        plans = learned_plans(learned, arguments.steps, arguments.guidance)
        model = folder.resolve().parent if folder.name == "solver" else folder.resolve()
        about = f"Learned at guidance scale {arguments.guidance:g}."
        file = plan_file(arguments.name or model.name, about, plans)
    elif arguments.to == "json":
        raise ValueError("Give --learned: a file of plans needs a learned solver.")
    if arguments.to == "json":
        write_plan_file(arguments.out, file or {})
    elif arguments.to == "diffusers":
        write_scheduler(arguments.out, folder, file)
    else:
        write_folder(arguments.to, arguments.out, file)
    counts = ", ".join(str(len(entry["timestep"])) for entry in file["plans"]) if file else ""
    print(f"Wrote {arguments.out}" + (f" with plans for {counts} steps of {file['name']}." if file else "."))
    return 0


if __name__ == "__main__":
    sys.exit(main())
