"""Measures beside PSNR: the judging reader, sharpness, kernel distance, decisions."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

import checkpoints
from checkpoints.recipe.data import picture_of
from solver.evaluation import measures
from solver.readers import reader_features

MODEL = Path(checkpoints.__file__).parent / "landscapes"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def drawings() -> tuple[Tensor, list[dict[str, str]]]:
    """Six drawings in [0, 1] and the scenes that they show."""
    drawn = [picture_of("fresh", 910_000 + i) for i in range(6)]
    pixels = torch.from_numpy(np.stack([p for p, _ in drawn])).permute(0, 3, 1, 2) / 255
    return pixels, [asdict(scene) for _, scene in drawn]


@pytest.fixture(scope="module")
def judged(drawings: Any) -> tuple[Tensor, list[dict[str, str]]]:
    judge = measures.load_judge(MODEL)
    with torch.inference_mode():
        features = reader_features(judge, drawings[0])
        labels = measures.reader_labels(judge, features)
        assert labels == judge.read(2 * drawings[0] - 1)
    return features, labels


# -- The reader ---------------------------------------------------------------------------------------------


def test_the_judge_reads_drawings_as_they_are(drawings: Any, judged: Any) -> None:
    features, labels = judged
    assert features.shape == (6, len(labels[0]), 192) and features.dtype == torch.float32
    assert measures.faithfulness(labels, drawings[1]).mean() > 0.93


def test_a_model_without_a_judge_is_refused_with_a_message(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no scene reader"):
        measures.load_judge(tmp_path)


def test_reader_distance_is_small_for_what_people_overlook_and_large_for_another_scene(
    drawings: Any, judged: Any
) -> None:
    features, _ = judged
    with torch.inference_mode():
        noisy = drawings[0][:2] + 0.03 * random(*drawings[0][:2].shape)
        near = measures.reader_distance(reader_features(measures.load_judge(MODEL), noisy), features[:2])
    far = measures.reader_distance(features, features.roll(1, 0))
    assert measures.reader_distance(features, features).abs().max() < 1e-6
    assert near.max() < 0.05 < 0.2 < far.min() and far.max() <= 2
    torch.testing.assert_close(far, measures.reader_distance(features.roll(1, 0), features))


def test_reader_distance_by_hand() -> None:
    a = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    b = torch.tensor([[[0.0, 3.0], [0.0, 1.0]]])
    assert measures.reader_distance(a, b).tolist() == [0.5]  # one attribute at a right angle, one the same
    assert measures.reader_distance(a[:, 0], -b[:, 1]).tolist() == [1.0]


def test_faithfulness_is_the_share_of_named_attributes() -> None:
    seen = [{"time": "day", "water": "lake"}, {"time": "night", "water": "none"}]
    named = [{"time": "day", "water": "sea"}, {"time": "night"}]
    assert measures.faithfulness(seen, named).tolist() == [0.5, 1.0]
    with pytest.raises(ValueError, match="does not know colour"):
        measures.faithfulness(seen[:1], [{"colour": "red"}])
    with pytest.raises(ValueError, match="names no attribute"):
        measures.faithfulness(seen[:1], [{}])
    with pytest.raises(ValueError, match="labels has 2 pictures, but named has 1 prompts"):
        measures.faithfulness(seen, named[:1])


# -- Pixels and sets ----------------------------------------------------------------------------------------


def blurred(pictures: Tensor, sigma: float) -> Tensor:
    """Under a Gaussian of this standard deviation in pixels, the rims repeated outwards."""
    size = pictures.shape[-1]
    places = torch.arange(size)[:, None] + torch.arange(-16, 17)
    weights = torch.exp(-((torch.arange(-16.0, 17)) ** 2) / (2 * sigma**2))
    matrix = torch.zeros(size, size).scatter_add_(
        1, places.clamp(0, size - 1), (weights / weights.sum()).expand(size, -1)
    )
    return matrix @ pictures @ matrix.T


def test_sharpness_falls_with_every_blur_and_hardly_minds_noise(drawings: Any) -> None:
    pictures = drawings[0]
    sharp = measures.sharpness(pictures)
    ratios = torch.stack([measures.sharpness(blurred(pictures, s)) for s in (0.3, 0.6, 1, 1.5, 3)]) / sharp
    ratios = torch.cat([torch.ones(1, len(pictures)), ratios])
    assert (ratios.diff(dim=0) < 0).all() and ratios[-1].max() < 0.5
    noisy = measures.sharpness(pictures + 0.01 * random(*pictures.shape))
    assert (noisy / sharp - 1).abs().max() < 0.2
    torch.testing.assert_close(measures.sharpness(pictures / 2), sharp / 2)  # a unit is a unit of the pixels


def test_sharpness_is_the_band_between_two_binomial_blurs() -> None:
    """On 9×9 pixels there is one place, so the definition can be written out."""
    picture = random(1, 1, 9, 9)
    fine = torch.tensor([0.0, 0, 0, 1, 2, 1, 0, 0, 0]) / 4
    coarse = torch.tensor([1.0, 8, 28, 56, 70, 56, 28, 8, 1]) / 256
    expected = abs(fine @ picture[0, 0] @ fine - coarse @ picture[0, 0] @ coarse)
    assert measures.sharpness(picture).item() == pytest.approx(expected.item(), rel=1e-4)
    assert measures.sharpness(torch.full((1, 3, 20, 30), 0.4)).item() < 1e-6
    with pytest.raises(ValueError, match="at least 9×9 pixels, not 30×8"):
        measures.sharpness(torch.zeros(1, 3, 8, 30))


def test_kid_is_the_double_loop() -> None:
    a, b = random(5, 2, 3, seed=1), random(4, 2, 3, seed=2) + 0.3

    def k(x: Tensor, y: Tensor) -> float:
        return float((x.flatten() @ y.flatten() / 6 + 1) ** 3)

    within_a = np.mean([k(a[i], a[j]) for i in range(5) for j in range(5) if i != j])
    within_b = np.mean([k(b[i], b[j]) for i in range(4) for j in range(4) if i != j])
    across = np.mean([k(x, y) for x in a for y in b])
    assert measures.kid(a, b) == pytest.approx(within_a + within_b - 2 * across, rel=1e-5)


def test_kid_of_one_distribution_is_zero_in_the_mean_and_grows_with_a_shift() -> None:
    draws = [
        [measures.kid(random(40, 8, seed=2 * s), random(40, 8, seed=2 * s + 1) + shift) for s in range(100)]
        for shift in (0.0, 0.3, 0.6)
    ]
    means = np.mean(draws, axis=1)
    errors = np.std(draws, axis=1) / math.sqrt(100)
    assert abs(means[0]) < 3 * errors[0]
    assert means[0] + 5 * errors[0] < means[1] < means[2] - 5 * errors[2]


def test_kid_leaves_out_pairs_of_one_prompt_where_pictures_depend_on_each_other() -> None:
    """Previews and finals of the same law that share their prompt and their layout, three of each prompt."""
    prompts = torch.arange(12).repeat_interleave(3)
    plain, grouped, shifted = [], [], []
    for s in range(100):
        layout = random(12, 8, seed=4 * s).repeat_interleave(3, 0) + random(36, 8, seed=4 * s + 1)
        preview, final = (layout + 0.3 * random(36, 8, seed=4 * s + i) for i in (2, 3))
        plain.append(measures.kid(preview, final))
        grouped.append(measures.kid(preview, final, prompts, prompts))
        shifted.append(measures.kid(preview, final + 0.5, prompts, prompts))
    error = np.std(grouped) / math.sqrt(len(grouped))
    assert abs(np.mean(grouped)) < 3 * error
    assert np.mean(plain) < -20 * error
    assert np.mean(shifted) > 20 * error


def test_intervals_of_kid_hold_what_is_true_about_as_often_as_they_say() -> None:
    held = []
    for s in range(60):
        generator = torch.Generator().manual_seed(s)
        prompts = [i % 12 for i in range(24)]
        finals = torch.randn(24, 8, generator=generator)
        previews, others = finals + 0.1 * torch.randn(24, 8, generator=generator), random(24, 8, seed=900 + s)
        found = measures.kid_interval(previews, others, prompts, resamples=400)
        assert found.value == pytest.approx(measures.kid(previews, others, prompts, prompts))
        assert found.low <= found.high
        held.append(found.low <= 0.005 and found.high >= 0)
        assert measures.kid_interval(previews + 2, others, prompts, resamples=400).low > 0
    assert sum(held) / len(held) > 0.85


def test_kid_refuses_sets_that_cannot_be_compared() -> None:
    for a, b, groups, message in [
        (random(3, 2), random(3, 3), (None, None), "2 and 3 features"),
        (random(3, 2), random(1, 2), (None, None), "at least two"),
        (random(3, 2), random(3, 2), ([0, 1, 2], None), "both sets or for neither"),
        (random(3, 2), random(3, 2), ([0, 1, 2], [0, 1]), "3 and 2 groups"),
        (random(3, 2), random(3, 2), ([0, 1, 2], [4, 4, 4]), "at least two"),
    ]:
        with pytest.raises(ValueError, match=message):
            measures.kid(a, b, *groups)


# -- Decisions ----------------------------------------------------------------------------------------------


def test_decisions_by_hand() -> None:
    preview = torch.tensor([[3.0, 1, 2], [5, 5, 1], [1, 1, 1], [0, 2, 1]])
    final = torch.tensor([[9.0, 1, 2], [4, 7, 1], [0, 3, 6], [8, 8, 2]])
    assert measures.top1_agreement(preview, final).tolist() == pytest.approx([1, 0.5, 1 / 3, 1])
    assert measures.regret(preview, final).tolist() == pytest.approx([0, 1.5, 3, 0])


def test_decisions_are_expectations_over_random_picks_among_ties() -> None:
    rng = np.random.default_rng(0)
    preview, final = rng.integers(0, 3, (2, 5, 4)).astype(float)
    picks = (preview + 1e-6 * rng.random((4000, 5, 4))).argmax(axis=2)
    got = np.take_along_axis(np.broadcast_to(final, (4000, 5, 4)), picks[..., None], axis=2)[..., 0]
    best = final.max(axis=1)
    tensors = torch.from_numpy(preview), torch.from_numpy(final)
    assert measures.top1_agreement(*tensors).numpy() == pytest.approx((got == best).mean(axis=0), abs=0.04)
    assert measures.regret(*tensors).numpy() == pytest.approx((best - got).mean(axis=0), abs=0.08)


def test_decisions_at_their_ends() -> None:
    final = random(50, 4)
    assert measures.top1_agreement(final, final).eq(1).all() and measures.regret(final, final).eq(0).all()
    assert measures.top1_agreement(torch.zeros(50, 4), final).eq(0.25).all()  # no knowledge is guessing
    assert measures.top1_agreement(-final, final).eq(0).all() and measures.regret(-final, final).gt(0).all()
    with pytest.raises(ValueError, match="same shape"):
        measures.regret(final, final[:, :3])
    with pytest.raises(ValueError, match="must be finite"):
        measures.top1_agreement(final.log(), final)


def test_spearman_is_scipys_ties_included_and_zero_where_nothing_is_ordered() -> None:
    rng = np.random.default_rng(1)
    estimate, truth = rng.integers(0, 5, (2, 30, 6)).astype(float)
    estimate[0], truth[1] = 2, 3
    got = measures.within_prompt_spearman(torch.from_numpy(estimate), torch.from_numpy(truth))
    expected = [spearmanr(e, t).statistic for e, t in zip(estimate[2:], truth[2:], strict=True)]
    assert got[2:].numpy() == pytest.approx(np.array(expected))
    assert got[:2].tolist() == [0, 0]
    x = random(4, 5)
    torch.testing.assert_close(measures.within_prompt_spearman(x, x.exp()), torch.ones(4).double())
