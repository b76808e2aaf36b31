"""Draw the report's plots as SVG for its page."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from scipy import stats

from app.study.report.analysis import Ratio, log_means, survival
from app.study.report.statistics import Estimate

matplotlib.rcParams.update({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10})
# An axis over more than this ratio is labelled with powers of ten only.
WIDE = 100
COLOURS = ("#4c6a92", "#c4713b", "#5a8f5c", "#8a5a8f", "#a8903a", "#3f8f94", "#9c4a55", "#6b6b6b")


def times_plot(table: pd.DataFrame, conditions: Sequence[str], means: Mapping[str, Estimate]) -> str:
    """Draw each participant's geometric means as a line, and the overall means with intervals."""
    figure, axes = _axes(1.4 + 1.3 * len(conditions), 3.8)
    each = np.exp(log_means(table).reindex(columns=list(conditions)))
    for _, row in each.iterrows():
        axes.plot(range(len(conditions)), row.to_numpy(), color="#999999", alpha=0.35, lw=0.8, zorder=1)
    for place, name in enumerate(conditions):
        values = each[name].dropna()
        axes.scatter([place] * len(values), values, s=14, color=COLOURS[place % 8], alpha=0.6, zorder=2)
        mean = means[name]
        if np.isfinite(mean.high) and mean.low > 0:
            axes.errorbar(
                place + 0.18, mean.value, _whiskers(mean), fmt="s", color="black", capsize=4, zorder=3
            )
    axes.set_yscale("log")
    plain = FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "125" else "")
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(plain)
    axes.set_xticks(range(len(conditions)), list(conditions))
    axes.set_xlim(-0.5, len(conditions) - 0.4)
    axes.set_ylabel("seconds until satisfied")
    return _svg(figure, "Times of each participant by condition, with means and intervals")


def ratios_plot(ratios: Sequence[Ratio]) -> str:
    """Draw ratios of times with the intervals of all three methods."""
    figure, axes = _axes(6.4, 1.0 + 0.75 * len(ratios))
    methods = (("paired t", "paired", "o"), ("mixed model", "mixed", "s"), ("bootstrap", "bootstrap", "D"))
    for row, ratio in enumerate(ratios):
        for place, (label, name, marker) in enumerate(methods):
            interval = getattr(ratio, name)
            if interval is None or not np.isfinite(interval.high):
                continue
            axes.errorbar(
                interval.value, row + 0.2 * (place - 1), xerr=_whiskers(interval), fmt=marker, ms=5,
                capsize=3, color=COLOURS[place], label=label if row == 0 else None,
            )  # fmt: skip
    axes.axvline(1, color="black", lw=0.8)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    low, high = min(low, 0.9), max(high, 1.1)
    axes.set_xlim(low, high)
    ticks = [0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10]
    if high / low > WIDE:  # with very few participants: labels would overlap
        apart = 1 + int(math.log10(high / low)) // 6
        ticks = [10.0 ** (apart * count) for count in range(-9, 10)]
    axes.set_xticks([each for each in ticks if low <= each <= high])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    axes.set_yticks(range(len(ratios)), [f"{ratio.of} ÷ {ratio.over}" for ratio in ratios])
    axes.set_ylim(len(ratios) - 0.5, -0.5)
    axes.set_xlabel("ratio of times (left of 1: faster)")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _svg(figure, "Ratios of times with their intervals")


def survival_plot(table: pd.DataFrame, conditions: Sequence[str]) -> str:
    """Draw the share of trials that have not ended satisfied, by time."""
    figure, axes = _axes(5.2, 3.8)
    for place, name in enumerate(conditions):
        if (table["condition"] == name).any():
            curve = survival(table, name)[0].survival_function_
            axes.step(curve.index, curve[name], where="post", color=COLOURS[place % 8], label=name)
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds")
    axes.set_ylabel("share not yet satisfied")
    axes.legend(frameon=False)
    return _svg(figure, "Share of trials not yet ended, by time and condition")


def parts_plot(table: pd.DataFrame, conditions: Sequence[str]) -> str:
    """Draw what the mean time of a trial is spent on."""
    labels = {"queue_s": "in the queue", "compute_s": "computing", "think_s": "thinking"}
    means = table.groupby("condition")[list(labels)].mean().reindex(list(conditions)).fillna(0.0)
    figure, axes = _stacked_bars(means.rename(columns=labels), COLOURS)
    axes.set_xlabel("seconds per trial")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _svg(figure, "Mean time of a trial: queue, computing, thinking")


def ratings_plot(table: pd.DataFrame, conditions: Sequence[str], question: str, points: int) -> str:
    """Draw how often each answer was given, by condition."""
    answers = table.groupby("condition")[f"rating_{question}"].value_counts(normalize=True).unstack()
    shares = answers.reindex(index=list(conditions), columns=range(1, points + 1)).fillna(0.0)
    shades = matplotlib.colormaps["RdYlBu"](np.linspace(0.08, 0.92, points))
    figure, axes = _stacked_bars(100 * shares, list(shades))
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"% of answers to “{question}”")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.05), ncols=1 + (points > 6))
    return _svg(figure, f"Answers to {question} by condition")


def residuals_plot(table: pd.DataFrame, of: str, over: str) -> str:
    """Draw the participants' log ratios against normal quantiles: close to the line, the t test is sound."""
    means = log_means(table)
    values = np.sort((means[of] - means[over]).dropna().to_numpy())
    figure, axes = _axes(3.6, 3.4)
    (expected, ordered), (slope, middle, _) = stats.probplot(values)
    axes.plot(expected, slope * expected + middle, color="#999999", lw=1)
    axes.scatter(expected, ordered, s=16, color=COLOURS[0])
    axes.set_xlabel("normal quantile")
    axes.set_ylabel("log ratio of a participant")
    return _svg(figure, "Normal quantiles of the participants' log ratios")


def _stacked_bars(values: pd.DataFrame, colours: Sequence[Any]) -> tuple[Figure, Axes]:
    """Draw a bar for each row, with a part for each column."""
    figure, axes = _axes(6.4, 0.9 + 0.5 * len(values))
    left = np.zeros(len(values))
    for (label, part), colour in zip(values.items(), colours, strict=False):
        axes.barh(range(len(values)), part, left=left, color=colour, label=str(label))
        left += part.to_numpy()
    axes.set_yticks(range(len(values)), list(values.index))
    axes.invert_yaxis()
    return figure, axes


def _whiskers(interval: Estimate) -> list[list[float]]:
    return [[interval.value - interval.low], [interval.high - interval.value]]


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure, description: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = "<svg" + buffer.getvalue().partition("<svg")[2]
    return text.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
