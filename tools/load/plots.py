"""Plots of the report: waiting times and goodput of each policy at each load."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from tools.load.figures import LoadRow
from tools.load.policies import POLICIES

PANELS = {
    "preview_p95_s": ("Waiting for previews, 95th percentile", "s"),
    "refine_p95_s": ("From pick to final, 95th percentile", "s"),
    "pick_to_final_p50_s": ("From pick to final, median", "s"),
    "preview_goodput": ("Previews in time", "%"),
}
COLOURS = ("#9a9a9a", "#c9a227", "#c9672a", "#6a9fb5", "#2f6f9f", "#1b4332")


def draw_rows(rows: Sequence[LoadRow], path: Path) -> None:
    """Draw a panel for each measure, with a group of bars for each load; times on a logarithmic axis."""
    loads = sorted({row.fifo_busy for row in rows})
    policies = [policy for policy in POLICIES if any(row.policy == policy for row in rows)]
    figure = Figure(figsize=(12, 7), layout="constrained")
    for axes, (name, (title, unit)) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        scale = 100 if unit == "%" else 1
        for i, policy in enumerate(policies):
            values = {row.fifo_busy: getattr(row, name) for row in rows if row.policy == policy}
            places = [
                j + (i - (len(policies) - 1) / 2) * 0.8 / len(policies)
                for j, load in enumerate(loads)
                if values.get(load) is not None
            ]
            heights = [scale * values[load] for load in loads if values.get(load) is not None]
            colour = COLOURS[i % len(COLOURS)]
            bars = axes.bar(places, heights, 0.75 / len(policies), label=policy, color=colour)
            axes.bar_label(bars, fmt="{:.3g}", fontsize=8, padding=2)
        axes.set_xticks(range(len(loads)), [f"{load:.0%} busy" for load in loads])
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_ylabel(unit)
        axes.spines[["top", "right"]].set_visible(False)
        if unit == "s" and any(getattr(row, name) for row in rows):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
    figure.axes[0].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
