"""Measures of previews: scene readers, sharpness, kernel distance, and decisions between previews.

Functions return tensors with one number per picture or per prompt; `solver.evaluation.intervals` has the
intervals of their means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from solver.evaluation.intervals import RESAMPLES, Interval, tails, times_drawn
from solver.readers import reader_class


def load_judge(model: str | Path, device: str | torch.device = "cpu") -> Any:
    """Load a model's judging scene reader, `<model>/readers/judge`, in float32.

    Raises:
        FileNotFoundError: the model has no such reader.
    """
    folder = Path(model) / "readers" / "judge"
    if not folder.is_dir():
        raise FileNotFoundError(f"{model} has no scene reader: there is no folder {folder}.")
    return reader_class("judge").from_pretrained(folder).float().eval().requires_grad_(False).to(device)


def reader_labels(judge: Any, features: Tensor) -> list[dict[str, str]]:
    """Return each picture's most likely value of every attribute, from features [B, attributes, width]."""
    choices = [head(features[:, i]).argmax(dim=1).tolist() for i, head in enumerate(judge.heads)]
    attributes = judge.config.attributes
    return [
        {name: values[i] for (name, values), i in zip(attributes, row, strict=True)}
        for row in zip(*choices, strict=True)
    ]


def reader_distance(features: Tensor, target_features: Tensor) -> Tensor:
    """Return a perceptual distance: 1 − cosine of the features of each attribute, averaged over attributes.

    A cosine needs no scale; averaged per attribute, a boat counts as much as the sky.

    Args:
        features, target_features: [B, attributes, width] from `reader_features`, or [B, width] from
            another network.

    Returns:
        Distances in [0, 2], 0 (up to rounding) for equal pictures, [B].
    """
    distance = 1 - F.cosine_similarity(features, target_features, dim=-1)
    return distance.flatten(1).mean(dim=1) if distance.ndim > 1 else distance


def faithfulness(labels: Sequence[Mapping[str, str]], named: Sequence[Mapping[str, str]]) -> Tensor:
    """Return the share of the attributes named in the prompt that the picture shows.

    Args:
        labels: attribute → value of each of B pictures, from `reader_labels`.
        named: attribute → value that each picture's prompt names.

    Returns:
        Shares in [0, 1], [B].

    Raises:
        ValueError: different lengths, a prompt that names no attribute, or an attribute unknown to the
            reader.
    """
    if len(labels) != len(named):
        raise ValueError(f"labels has {len(labels)} pictures, but named has {len(named)} prompts.")
    shares = []
    for shown, wanted in zip(labels, named, strict=True):
        if not wanted:
            raise ValueError("Faithfulness is undefined for a prompt that names no attribute.")
        if unknown := sorted(wanted.keys() - shown.keys()):
            raise ValueError(f"The reader does not know {', '.join(unknown)}.")
        shares.append(sum(shown[name] == value for name, value in wanted.items()) / len(wanted))
    return torch.tensor(shares)


def sharpness(pictures: Tensor) -> Tensor:
    """Return the fine detail: the root mean square of the difference of blurs of √½ and √2 pixels.

    The band of frequencies contains edges and texture, but little of single noisy pixels. Unlike a mean
    absolute gradient, the mean square falls with every Gaussian blur (Parseval). Compare a preview with its
    final by the ratio, which is below 1 for a blurred preview. The blurs are two and eight means of
    neighbours, without padding.

    Args:
        pictures: in [0, 1], [B, channels, H, W], at least 9×9.

    Returns:
        At least 0, in units of the pixels, [B].

    Raises:
        ValueError: pictures smaller than 9×9.
    """
    if min(pictures.shape[-2:]) < 9:
        height, width = pictures.shape[-2:]
        raise ValueError(f"Sharpness needs pictures of at least 9×9 pixels, not {width}×{height}.")

    def mean_of_neighbours(x: Tensor) -> Tensor:
        x = x[..., 1:, :] + x[..., :-1, :]
        return (x[..., 1:] + x[..., :-1]) / 4

    finer = mean_of_neighbours(mean_of_neighbours(pictures.float()))
    coarser = finer
    for _ in range(6):
        coarser = mean_of_neighbours(coarser)
    return (finer[..., 3:-3, 3:-3] - coarser).square().mean(dim=(1, 2, 3)).sqrt()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return k(x, y) = (xᵀy/d + 1)³ of all rows [A, d] and [B, d], [A, B]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kid(
    features_a: Tensor,
    features_b: Tensor,
    groups_a: Sequence[int] | Tensor | None = None,
    groups_b: Sequence[int] | Tensor | None = None,
) -> float:
    """Return the kernel distance of two sets of pictures: unbiased squared MMD with k(x, y) = (xᵀy/d + 1)³.

    The kernel inception distance (Bińkowski et al. 2018) on any features and on whole sets: means of k within
    a, within b and across, without pairs of a picture with itself. Its expectation is 0 for two samples of
    one distribution, so it may be negative.

    The estimate is unbiased for independent pictures only. A preview and its final, or two pictures of one
    prompt, are not: their large k makes the distance too small. With the prompt of every picture as its
    group, pairs within a group are left out of all three means, and the estimate is unbiased again (the
    one-sample U-statistic of Gretton et al. 2012, lemma 6, over prompts).

    Args:
        features_a, features_b: [A, …] and [B, …]; all dimensions but the first are d features.
        groups_a, groups_b: the prompt of each row, [A] and [B]; None makes every row a group.

    Returns:
        The distance in units of the kernel: comparable only between sets with the same features.

    Raises:
        ValueError: features of different widths, groups for one set only, or fewer than two groups in a set.
    """
    a, b = features_a.flatten(1).double(), features_b.flatten(1).double()
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"Sets of {a.shape[1]} and {b.shape[1]} features cannot be compared.")
    if (groups_a is None) != (groups_b is None):
        raise ValueError("Give groups for both sets or for neither.")
    # Without groups, every row gets a number of its own.
    g = torch.arange(len(a)) if groups_a is None else torch.as_tensor(groups_a).cpu()
    h = torch.arange(len(b)) + len(a) if groups_b is None else torch.as_tensor(groups_b).cpu()
    if g.shape != (len(a),) or h.shape != (len(b),):
        raise ValueError(f"There are {len(a)} and {len(b)} pictures, but {g.numel()} and {h.numel()} groups.")
    if len(g.unique()) < 2 or len(h.unique()) < 2:
        raise ValueError("A set needs at least two pictures of different prompts.")

    def mean_kernel(x: Tensor, y: Tensor, of_x: Tensor, of_y: Tensor) -> Tensor:
        apart = (of_x[:, None] != of_y[None]).to(x.device)
        return _kernel(x, y)[apart].mean()

    return float(mean_kernel(a, a, g, g) + mean_kernel(b, b, h, h) - 2 * mean_kernel(a, b, g, h))


def kid_interval(
    features_a: Tensor, features_b: Tensor, prompts: Sequence[int] | Tensor, resamples: int = RESAMPLES
) -> Interval:
    """Return `kid` of two sets of pictures of the same prompts, and its percentile bootstrap interval.

    A prompt that is drawn twice is still one group: its pictures are compared only with those of other
    prompts. A bootstrap sample with a single prompt has no distance and is left out.

    Args:
        features_a, features_b: [n, …]; row i of both belongs to prompt `prompts[i]`.
        prompts: integers, [n].

    Raises:
        ValueError: as `kid`.
    """
    value = kid(features_a, features_b, prompts, prompts)
    low, high = np.quantile(kid_samples(features_a, features_b, prompts, resamples), tails(0.95))
    return Interval(value, float(low), float(high))


def kid_samples(
    features_a: Tensor, features_b: Tensor, prompts: Sequence[int] | Tensor, resamples: int = RESAMPLES
) -> Any:
    """Return `kid` in each bootstrap sample of `kid_interval`, [resamples].

    The samples draw the same prompts for all sets of pictures of the same prompts, so those of two solvers
    can be compared sample by sample.
    """
    a, b = (f.flatten(1).double().cpu() for f in (features_a, features_b))
    _, group = torch.as_tensor(prompts).cpu().unique(return_inverse=True)
    member = torch.nn.functional.one_hot(group).double()  # [n, P]
    apart = 1 - torch.eye(member.shape[1], dtype=torch.float64)
    pairs = (member.sum(0)[:, None] * member.sum(0)[None] * apart).numpy()
    drawn = times_drawn(len(pairs), resamples, 0)
    drawn = drawn[(drawn > 0).sum(axis=1) > 1]

    def mean_kernels(x: Tensor, y: Tensor) -> Any:
        sums = (member.T @ _kernel(x, y) @ member * apart).numpy()
        return ((drawn @ sums) * drawn).sum(axis=1) / ((drawn @ pairs) * drawn).sum(axis=1)

    return mean_kernels(a, a) + mean_kernels(b, b) - 2 * mean_kernels(a, b)


def _check_scores(preview: Tensor, final: Tensor) -> None:
    if preview.shape != final.shape or preview.ndim != 2 or preview.shape[1] < 2:
        shapes = f"{tuple(preview.shape)} and {tuple(final.shape)}"
        raise ValueError(f"Scores must have the same shape (prompts, two or more pictures), not {shapes}.")
    if not (preview.isfinite().all() and final.isfinite().all()):
        raise ValueError("Scores must be finite.")


def top1_agreement(preview: Tensor, final: Tensor) -> Tensor:
    """Return, for every prompt, the probability that the best preview has the best final.

    With ties, it is the share of the best previews whose final is one of the best. A constant preview score
    so gets the rate of guessing, 1/K for finals without ties.

    Args:
        preview, final: scores of K previews of each of P prompts, and of their finals, higher is better, [P,
            K].

    Returns:
        Probabilities in [0, 1], [P].

    Raises:
        ValueError: different shapes, fewer than two pictures, or scores that are not finite.
    """
    _check_scores(preview, final)
    picked = (preview == preview.amax(dim=1, keepdim=True)).double()
    right = final == final.amax(dim=1, keepdim=True)
    return (picked * right).sum(dim=1) / picked.sum(dim=1)


def regret(preview: Tensor, final: Tensor) -> Tensor:
    """Return, for every prompt, the best final score minus the final score of the best preview.

    With ties, it is the mean over the best previews.

    Args:
        preview, final: scores, higher is better, [P, K].

    Returns:
        At least 0, in units of the final score, [P].

    Raises:
        ValueError: as `top1_agreement`.
    """
    _check_scores(preview, final)
    picked = (preview == preview.amax(dim=1, keepdim=True)).double()
    lost = final.amax(dim=1, keepdim=True).double() - final.double()
    return (picked * lost).sum(dim=1) / picked.sum(dim=1)


def within_prompt_spearman(estimate: Tensor, truth: Tensor) -> Tensor:
    """Return Spearman's ρ of an error estimate and the true error within each prompt; ties get the mean rank.

    Compare at one number of evaluations: pooled over several, everything that falls with their number
    correlates.

    Args:
        estimate, truth: [P, K], K pictures of each of P prompts.

    Returns:
        Correlations in [-1, 1], [P]; 0 if either is the same for all pictures.

    Raises:
        ValueError: as `top1_agreement`.
    """
    _check_scores(estimate, truth)

    def centred_ranks(x: Tensor) -> Tensor:  # rank: number of lower values and half the number of equal ones
        above = (x[:, :, None] > x[:, None, :]).double() + (x[:, :, None] == x[:, None, :]).double() / 2
        ranks = above.sum(dim=2)
        return ranks - ranks.mean(dim=1, keepdim=True)

    e, t = centred_ranks(estimate), centred_ranks(truth)
    scale = (e.square().sum(dim=1) * t.square().sum(dim=1)).sqrt()
    return (e * t).sum(dim=1) / scale.where(scale > 0, 1.0)
