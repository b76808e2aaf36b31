"""The command line: `consistency-solver COMMAND …`, or `python -m solver COMMAND …`."""

import importlib
import importlib.util
import sys
from collections.abc import Mapping

COMMANDS: Mapping[str, tuple[str, str]] = {
    "learn": ("solver.evaluation.learn", "learn a solver for a model: all of the following in one command"),
    "pairs": ("solver.training.pairs", "make pairs of noise and full-step picture"),
    "train": ("solver.training.train", "train a solver on pairs, by PPO or by gradient"),
    "evaluate": ("solver.evaluation.evaluate", "compare solvers on the same noises at equal evaluations"),
    "report": ("solver.evaluation.report", "write the tables and plots of an evaluation"),
    "plot": ("solver.evaluation.plot", "draw the tables, weights or time grids of solvers"),
    "convert": ("solver.convert", "read the weights that the paper's authors published"),
    "reproduce": ("solver.evaluation.reproduce", "repeat an experiment of the paper: PPO against regression"),
    "student": ("solver.training.students", "distil the network into a student of few calls"),
    "rivals": ("solver.evaluation.rivals", "compare students with solvers at equal network calls"),
    "export": ("integrations.export", "write plans for ComfyUI, Forge, diffusers and others"),
    "bench": ("solver.evaluation.bench", "measure what the solver itself costs"),
    "ablate": ("solver.evaluation.ablate", "compare variants of the learned solver"),
}
"""Name: the module whose main() runs it, and what it is for."""

USAGE = "usage: consistency-solver COMMAND [options]    (COMMAND --help explains its options)"


def main() -> int:
    """Run the command that the first argument names; return the exit code."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print(USAGE, "", *(f"  {each:{width}}  {what}" for each, (_, what) in COMMANDS.items()), sep="\n")
        return 0
    if name not in COMMANDS:
        print(f"{USAGE}\nThere is no command {name!r}; there are {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    if importlib.util.find_spec("checkpoints"):  # registers the embedded model's classes
        importlib.import_module("checkpoints")
    sys.argv = [f"consistency-solver {name}", *sys.argv[2:]]
    return importlib.import_module(COMMANDS[name][0]).main() or 0


if __name__ == "__main__":
    sys.exit(main())
