"""What previews are held to beside PSNR: what a reader of scenes sees, sharpness, distributions, decisions.

Everything here takes and gives tensors, one number per picture or per prompt;
`solver.evaluation.intervals` says how sure their means are.
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
    """The judging scene reader of a model folder, `<model>/readers/judge`, in single precision.

    Raises:
        FileNotFoundError: the model has no such reader.
    """
    folder = Path(model) / "readers" / "judge"
    if not folder.is_dir():
        raise FileNotFoundError(f"{model} has no scene reader: there is no folder {folder}.")
    return reader_class("judge").from_pretrained(folder).float().eval().requires_grad_(False).to(device)


def reader_labels(judge: Any, features: Tensor) -> list[dict[str, str]]:
    """The most likely value of every attribute for each picture, from its features [B, attributes, width]."""
    choices = [head(features[:, i]).argmax(dim=1).tolist() for i, head in enumerate(judge.heads)]
    attributes = judge.config.attributes
    return [
        {name: values[i] for (name, values), i in zip(attributes, row, strict=True)}
        for row in zip(*choices, strict=True)
    ]


def reader_distance(features: Tensor, target_features: Tensor) -> Tensor:
    """A perceptual distance: 1 − cosine of the features of each attribute, averaged over attributes.

    The angle needs no scale and no statistics of other pictures; taken per attribute, a boat counts as much
    as the sky.

    Args:
        features, target_features: [B, attributes, width] from `reader_features`, or [B, width] from
            any other network.

    Returns:
        In [0, 2], 0 (up to rounding) for equal pictures, [B].
    """
    distance = 1 - F.cosine_similarity(features, target_features, dim=-1)
    return distance.flatten(1).mean(dim=1) if distance.ndim > 1 else distance


def faithfulness(labels: Sequence[Mapping[str, str]], named: Sequence[Mapping[str, str]]) -> Tensor:
    """How much of what the prompt names is in the picture.

    Args:
        labels: what a reader sees in each of B pictures, attribute -> value, as `reader_labels` gives it.
        named: what the prompt of each picture names, attribute -> value.

    Returns:
        The share of the named attributes that were read as named, in [0, 1], [B].

    Raises:
        ValueError: lists of different lengths, a prompt that names nothing or something the reader
            does not know.
    """
    if len(labels) != len(named):
        raise ValueError(f"{len(labels)} pictures were read for {len(named)} prompts.")
    shares = []
    for seen, said in zip(labels, named, strict=True):
        if not said:
            raise ValueError("A prompt that names no attribute cannot be held against a picture.")
        if unknown := sorted(said.keys() - seen.keys()):
            raise ValueError(f"The reader does not know {', '.join(unknown)}.")
        shares.append(sum(seen[name] == value for name, value in said.items()) / len(said))
    return torch.tensor(shares)


def sharpness(pictures: Tensor) -> Tensor:
    """Fine detail: the root mean square of what lies between blurs of 0.7 and 1.4 pixels.

    A band, not the highest frequencies as a Laplacian takes them: edges and texture count, single noisy
    pixels hardly. A square, not an absolute gradient, which adds up to the same along a soft edge as along
    a hard one: by Parseval every Gaussian blur makes it smaller. Compare a preview with its own final by
    the ratio, which is below 1 for a blurred one.

    The blurs are binomial, two and eight means of neighbours with standard deviations √½ and √2, where they
    lie inside the picture.

    Args:
        pictures: in [0, 1], [B, channels, H, W], at least 9×9.

    Returns:
        At least 0, in units of the pixels, [B].

    Raises:
        ValueError: pictures that are too small.
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
    """k(x, y) = (xᵀy/d + 1)³ of each row [A, d] with each [B, d]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kid(
    features_a: Tensor,
    features_b: Tensor,
    groups_a: Sequence[int] | Tensor | None = None,
    groups_b: Sequence[int] | Tensor | None = None,
) -> float:
    """Kernel distance of two sets of pictures: squared MMD with k(x, y) = (xᵀy/d + 1)³, without bias.

    The kernel inception distance (Bińkowski et al. 2018) on any features, and on whole sets instead of
    subsets: the means of k over pairs within a, within b and across, no picture with itself. It may be
    negative, and is 0 in the mean for two draws from one distribution.

    That holds for independent pictures. Previews and their own finals are not (nor are pictures of one
    prompt): k of a preview with its final is large, and the distance comes out too small, below zero if
    the previews are good. Give the prompt of every picture as its group, and pairs within a group are left
    out of all three means, which makes the estimate unbiased again (the one-sample U-statistic of Gretton et
    al. 2012, lemma 6, over prompts).

    Args:
        features_a, features_b: [A, …] and [B, …]; all but the first dimension are d features.
        groups_a, groups_b: which prompt each row belongs to, [A] and [B]; without, every row is its own.

    Returns:
        In units of the kernel, so comparable between sets with the same features only.

    Raises:
        ValueError: features that do not match, groups for one set only, fewer than two groups in a set.
    """
    a, b = features_a.flatten(1).double(), features_b.flatten(1).double()
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"Sets of {a.shape[1]} and {b.shape[1]} features cannot be compared.")
    if (groups_a is None) != (groups_b is None):
        raise ValueError("Give groups for both sets or for neither.")
    # Numbers that nobody shares, where none were given.
    g = torch.arange(len(a)) if groups_a is None else torch.as_tensor(groups_a).cpu()
    h = torch.arange(len(b)) + len(a) if groups_b is None else torch.as_tensor(groups_b).cpu()
    if g.shape != (len(a),) or h.shape != (len(b),):
        raise ValueError(f"{len(a)} and {len(b)} pictures, but {g.numel()} and {h.numel()} groups.")
    if len(g.unique()) < 2 or len(h.unique()) < 2:
        raise ValueError("A set needs at least two pictures of different prompts.")

    def mean_kernel(x: Tensor, y: Tensor, of_x: Tensor, of_y: Tensor) -> Tensor:
        apart = (of_x[:, None] != of_y[None]).to(x.device)
        return _kernel(x, y)[apart].mean()

    return float(mean_kernel(a, a, g, g) + mean_kernel(b, b, h, h) - 2 * mean_kernel(a, b, g, h))


def kid_interval(
    features_a: Tensor, features_b: Tensor, prompts: Sequence[int] | Tensor, resamples: int = RESAMPLES
) -> Interval:
    """`kid` of two sets of pictures of the same prompts, and its percentile bootstrap interval over prompts.

    A prompt that is drawn twice is still one group, so that its pictures are compared with those of other
    prompts alone; a sample of one prompt alone has no distance and is left out.

    Args:
        features_a, features_b: [n, …]; row i of both belongs to prompt `prompts[i]`.
        prompts: [n], any integers.

    Raises:
        ValueError: as `kid`.
    """
    value = kid(features_a, features_b, prompts, prompts)
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

    distances = mean_kernels(a, a) + mean_kernels(b, b) - 2 * mean_kernels(a, b)
    low, high = np.quantile(distances, tails(0.95))
    return Interval(value, float(low), float(high))


def _check_scores(preview: Tensor, final: Tensor) -> None:
    if preview.shape != final.shape or preview.ndim != 2 or preview.shape[1] < 2:
        shapes = f"{tuple(preview.shape)} and {tuple(final.shape)}"
        raise ValueError(f"Both need the same shape (prompts, two or more pictures), not {shapes}.")
    if not (preview.isfinite().all() and final.isfinite().all()):
        raise ValueError("A score is not finite.")


def top1_agreement(preview: Tensor, final: Tensor) -> Tensor:
    """For every prompt, the chance that who picks the best preview has picked a best final.

    Among tied best previews one is picked at random, and every tied best final is a right answer: the result
    is the share of the best previews whose final is a best one. A preview score that never tells pictures
    apart so gets exactly the rate of guessing, top1_agreement(zeros, final): 1/K where finals have no ties.

    Args:
        preview, final: scores, higher is better, [P, K]: K previews of each of P prompts, and their finals.

    Returns:
        In [0, 1], [P]; the mean is the share of prompts on which preview and final agree.

    Raises:
        ValueError: shapes that differ, fewer than two pictures, scores that are not finite.
    """
    _check_scores(preview, final)
    picked = (preview == preview.amax(dim=1, keepdim=True)).double()
    right = final == final.amax(dim=1, keepdim=True)
    return (picked * right).sum(dim=1) / picked.sum(dim=1)


def regret(preview: Tensor, final: Tensor) -> Tensor:
    """For every prompt, what picking by preview costs: the best final score minus that of the one picked.

    The expectation over a random pick among tied best previews.

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
    """How well an error estimate orders the pictures of one prompt: Spearman's ρ, ties at their mean rank.

    To be read at one number of evaluations: pooled over several, anything that falls with it looks good.

    Args:
        estimate, truth: [P, K], K pictures of each of P prompts.

    Returns:
        In [-1, 1], [P]; 0 where either is the same for all pictures, for then it orders nothing.

    Raises:
        ValueError: as `top1_agreement`.
    """
    _check_scores(estimate, truth)

    def centred_ranks(x: Tensor) -> Tensor:  # a rank is how many are below and half of how many are equal
        above = (x[:, :, None] > x[:, None, :]).double() + (x[:, :, None] == x[:, None, :]).double() / 2
        ranks = above.sum(dim=2)
        return ranks - ranks.mean(dim=1, keepdim=True)

    e, t = centred_ranks(estimate), centred_ranks(truth)
    scale = (e.square().sum(dim=1) * t.square().sum(dim=1)).sqrt()
    return (e * t).sum(dim=1) / scale.where(scale > 0, 1.0)
