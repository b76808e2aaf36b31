"""Write docs/figures.md from the files of results in docs/results: python -m tools.figures

Every number there comes from a file that the command beside it wrote.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from solver.evaluation import page, reproduce

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "figures.md"
EVALUATE = """\
python -m solver evaluate --pairs 304 --nfe 4 5 6 8 10 12 15 20 \\
    --solvers consistency dpm++2m unipc --validation-pairs 32 --finer-pairs 4 \\
    --json docs/results/solvers.json"""
SOLVERS = """\
{pairs} held-out pairs of prompt and noise at guidance scale 3, which is the paper's. The target is the
picture of 40 steps of `dpm++2m` from the same noise. The learned solver was trained by gradient through the
frozen network. Training-free solvers run on the time grid that did best on {validation} validation pairs
{chosen}. Brackets are 95 % intervals over prompts. More solvers are
[beside the weights](../checkpoints/landscapes/solver/README.md)."""
REPRODUCED = """\
The paper's policy trained by PPO and its twin by regression, on targets as the authors' code makes them
([stable-diffusion.md](stable-diffusion.md)). This run is far too small to judge the method: it shows what the
command gives. Without `--train-pairs` and the options after it, it has the paper's size."""
REPRODUCE = """\
python -m solver reproduce landscapes --out build/paper --train-pairs 8 --pairs 16 --validation-pairs 4 \\
    --iterations 24 --group 10 --steps 5 --nfe 5 --learning-rate 1e-2 --regression-learning-rate 1e-2 \\
    --validate-every 12"""
HEAD = """\
# Figures

How good and how fast it is, as measured. `python -m tools.figures` writes this page from `docs/results`, and
a test holds the two together. To measure again, run the command above a table and write the page anew.
"""

Line = tuple[str, str, Callable[[float], str]]
"""What is measured, its key in the results (with dots for nested ones), and how the number is written."""

SPEED: Sequence[Line] = (
    ("four previews of 6 steps", "previews_s", "{:.2f} s".format),
    ("click to the first preview painted in the browser", "click_to_first_preview_s", "{:.2f} s".format),
    ("refinement of 40 steps", "refinement_s", "{:.1f} s".format),
    ("solver arithmetic, share of a preview's time", "solver_share", "{:.1%}".format),
    ("`python app.py` to a page that answers", "start_s", "{:.1f} s".format),
    ("peak memory of the app", "peak_memory_bytes", lambda value: f"{value / 2**30:.2f} GiB"),
    ("first visit to the page, over the wire", "first_visit_bytes", lambda value: f"{value / 1e3:.0f} kB"),
)
MODEL: Sequence[Line] = (
    ("autoencoder, PSNR on fresh drawings", "autoencoder.psnr_db", "{:.1f} dB".format),
    ("named attributes that the judging reader finds", "faithfulness.faithfulness", "{:.1%}".format),
    ("the same in drawings of these captions", "faithfulness.faithfulness_of_drawings", "{:.1%}".format),
    ("distance between seeds ÷ between drawings of a caption", "diversity.diversity_ratio", "{:.2f}".format),
    ("judging reader, balanced accuracy", "readers.judge_balanced_accuracy", "{:.1%}".format),
    ("reward reader, balanced accuracy", "readers.reward_balanced_accuracy", "{:.1%}".format),
)


def read(name: str) -> Any:
    """Return the results that a command wrote."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def value(results: Any, key: str) -> float:
    """Look up a nested number: "readers.judge" is results["readers"]["judge"]."""
    for part in key.split("."):
        results = results[part]
    return results


def table(results: Any, lines: Sequence[Line]) -> str:
    """Write a Markdown table of figures and their values."""
    rows = [f"| {name} | {form(value(results, key))} |" for name, key, form in lines]
    return "\n".join(["| figure | value |", "|---|---|", *rows])


SOLVER_COLUMNS = {
    "psnr_db": ("PSNR, dB", 2),
    "ssim": ("SSIM", 4),
    "reader_distance": ("reader distance", 4),
    "sharpness": ("sharpness", 3),
    "kid": ("KID", 4),
    "top1_agreement": ("best of four agrees", 3),
}


def solver_table(rows: Sequence[dict[str, Any]]) -> str:
    """Write a Markdown table that compares solvers, best last at each number of evaluations."""
    head = ["evaluations", "solver", "time grid", *(title for title, _ in SOLVER_COLUMNS.values())]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in sorted(rows[:-1], key=lambda row: (row["nfe"], row["psnr_db"])):
        values = [
            f"{row[k]:.{digits}f} {interval(row, k, digits)}" for k, (_, digits) in SOLVER_COLUMNS.items()
        ]
        lines.append(f"| {row['nfe']} | {row['solver']} | {row['grid']} | {' | '.join(values)} |")
    return "\n".join(lines)


def interval(row: dict[str, Any], key: str, digits: int) -> str:
    low, high = row[f"{key}_ci"]
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def bench_table(result: dict[str, Any]) -> str:
    """Write a Markdown table of a scheduler step's cost."""
    head = ("| latents | ours, ms | diffusers' DPM-Solver++, ms |", "|---|---|---|")
    rows = [
        f"| {size} × {size} | {cost['ours']:.3f} | {cost['diffusers']:.3f} |"
        for size, cost in result["step_ms"].items()
    ]
    return "\n".join([*head, *rows])


def machine_of(results: dict[str, Any]) -> str:
    machine = results["machine"]
    return (
        f"Measured on {machine['cores']} cores of {machine['processor']}, torch {machine['torch']}, "
        f"{machine['date']}, nothing else running."
    )


def render() -> str:
    """Return the text of docs/figures.md."""
    latency, solvers = read("latency"), read("solvers")
    final = solvers[-1]
    parts = [
        HEAD,
        "## Speed",
        code("python -m tools.latency --json docs/results/latency.json"),
        machine_of(latency),
        table(latency, SPEED),
        "One step of the scheduler, beside diffusers' `DPMSolverMultistepScheduler` on the same tensors:",
        code("python -m solver bench --json > docs/results/bench.json"),
        bench_table(read("bench")),
        "## The embedded model",
        "500 captions and drawings that no training has seen, 40 steps of `dpm++2m` at guidance scale 3:",
        code("python -m checkpoints.recipe.evaluate --json docs/results/embedded-model.json"),
        table(read("embedded-model"), MODEL),
        "## The solver",
        SOLVERS.format(
            pairs=final["pairs"], validation=final["validation_pairs"], chosen=page.grids_chosen(final)
        ),
        code(EVALUATE),
        "Leads of the learned solver over the training-free one that is best in the measure, by prompt; "
        "positive is better:",
        page.leads(solvers),
        page.verdicts(solvers),
        "Evaluations that others need for its quality:",
        page.equivalents(solvers),
        "All values:",
        solver_table(solvers),
        "## The paper's experiment, small",
        REPRODUCED,
        code(REPRODUCE),
        reproduce.table(read("paper")),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def code(command: str) -> str:
    return f"```\n{command}\n```"


def main() -> None:
    PAGE.write_text(render(), encoding="utf-8")
    print(f"Wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
