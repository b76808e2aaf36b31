"""Rewards, with tiny random networks in place of the pretrained ones."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from solver import psnr, ssim
from solver.training.rewards import REWARDS, Part, Reward, RewardError, combine, make_reward, parse
from solver.training.rewards.measures import agreement, cosine, peak_signal_to_noise, signal_to_noise
from solver.training.rewards.networks import load
from tests.solver.training.tiny_rewards import TINY, pictures, tiny_dino

READERS = Path(__file__).parents[3] / "checkpoints/landscapes/readers"


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """The specification of a reward by name, with tiny weights where it needs any."""
    path = list(sys.path)
    yield cache(
        lambda name: f"{name}:{TINY[name](tmp_path_factory.mktemp('tiny') / name)}" if name in TINY else name
    )
    sys.path[:] = path


@pytest.fixture(scope="module")
def reward(spec: Callable[[str], str]) -> Callable[[str], Reward]:
    return cache(lambda name: make_reward(spec(name)))


@pytest.mark.parametrize("name", REWARDS)
def test_an_equal_picture_scores_best(name: str, reward: Callable[[str], Reward]) -> None:
    target = pictures(1)
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    others = {
        "little noise": target + 0.02 * noise,
        "much noise": target + 0.4 * noise,
        "darker": 0.5 * target,
        "mirrored": target.flip(-1),
        "other": pictures(1, seed=5),
    }
    r = reward(name)
    equal = float(r(target, target))
    values = {key: float(r(other.clamp(0, 1), target)) for key, other in others.items()}
    assert all(value <= equal for value in values.values()), values
    assert min(values.values()) < equal
    if r.differentiable:
        assert values["much noise"] < values["little noise"] < equal


@pytest.mark.parametrize("name", REWARDS)
def test_pictures_of_a_batch_do_not_meet(name: str, reward: Callable[[str], Reward]) -> None:
    r, a, b = reward(name), pictures(4, seed=1), pictures(4, seed=2)
    values = r(a, b)
    assert values.shape == (4,) and values.dtype == torch.float32
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(r(a[order], b[order]), values[order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([r(a[:1], b[:1]), r(a[1:], b[1:])]), values, rtol=1e-4, atol=1e-5)
    target = r.features(b[:1])
    one = r.similarity(r.features(a), target)
    torch.testing.assert_close(one, r(a, b[:1].expand(4, -1, -1, -1)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(r.similarity(r.features(a), target[[0] * 4]), one)


@pytest.mark.parametrize("name", REWARDS)
def test_a_gradient_exactly_where_the_table_says(name: str, reward: Callable[[str], Reward]) -> None:
    r, target = reward(name), pictures(2, seed=1)
    assert r.differentiable == REWARDS[name].differentiable
    for start in (pictures(2, seed=2), target):
        x = start.clone().requires_grad_()
        total = r(x, target).sum()
        assert total.requires_grad == r.differentiable
        if r.differentiable:
            (gradient,) = torch.autograd.grad(total, x)
            assert gradient.isfinite().all()
            assert (gradient.flatten(1).abs().amax(dim=1) > 0).all() or start is target


def test_psnr_and_ssim_are_those_of_the_solver(reward: Callable[[str], Reward]) -> None:
    a, b = pictures(3, seed=1), pictures(3, seed=2)
    torch.testing.assert_close(reward("psnr")(a, b), psnr(a, b))
    torch.testing.assert_close(reward("ssim")(a, b), ssim(a, b))
    assert reward("psnr")(a, a).tolist() == [100.0] * 3


def test_signal_to_noise_measures_on_the_targets_scale() -> None:
    depth = 1 + pictures(1)[:, 0]
    equal = float(signal_to_noise(depth, depth))
    values = [float(signal_to_noise(depth * scale, depth)) for scale in (1.01, 1.1, 1.5, 2)]
    assert equal == 100 and [equal, *values] == sorted([equal, *values], reverse=True)
    shifts = [float(signal_to_noise(depth + shift, depth)) for shift in (0.01, 0.1, 1)]
    assert shifts == sorted(shifts, reverse=True) and shifts[0] < equal
    assert values[-1] < 0  # worse than the target's mean at every place, which is 0 dB
    torch.testing.assert_close(signal_to_noise(depth.mean().expand_as(depth), depth), torch.zeros(1))
    # The network's unit does not matter, as long as both are in it.
    other = depth + 0.1 * pictures(1, seed=3)[:, 0]
    torch.testing.assert_close(
        signal_to_noise(1000 * other, 1000 * depth), signal_to_noise(other, depth), rtol=1e-4, atol=1e-3
    )
    flat = torch.ones(1, 4, 4)
    assert signal_to_noise(flat * 1.1, flat).isfinite() and signal_to_noise(flat * 0, flat * 0) == 100


def test_depth_does_not_hide_a_scale(reward: Callable[[str], Reward]) -> None:
    r = reward("depth")
    depth = r.features(pictures(2))
    assert depth.dim() == 3 and (depth.flatten(1).std(dim=1) > 0).all()
    values = [r.similarity(depth * scale, depth) for scale in (1, 1.2, 2)]
    assert (values[0] > values[1]).all() and (values[1] > values[2]).all()


def test_other_measures_by_hand() -> None:
    a, b = torch.tensor([[3.0, 0.0, 4.0], [1.0, 2.0, 2.0]]), torch.tensor([[3.0, 0.0, 4.0], [2.0, 2.0, -1.0]])
    torch.testing.assert_close(cosine(a, b), torch.tensor([1.0, 4 / 9]))
    torch.testing.assert_close(agreement(a, b), torch.tensor([1.0, 1 / 3]))
    torch.testing.assert_close(
        peak_signal_to_noise(torch.zeros(1, 4), torch.full((1, 4), 0.1)), torch.tensor([20.0])
    )


def test_reader_and_labels_are_the_readers(spec: Callable[[str], str]) -> None:
    from checkpoints.readers import READERS as CLASSES

    readers = Path(spec("reader").removeprefix("reader:"))
    folder = readers.rename(readers.with_name("reward"))
    try:
        reader = CLASSES["reward"].from_pretrained(folder).eval()
        a, b = pictures(6, seed=1), pictures(6, seed=2)
        seen = make_reward("reader", readers=folder.parent).features(a)
        torch.testing.assert_close(seen, reader.features(2 * a - 1))
        read = zip(reader.read(2 * a - 1), reader.read(2 * b - 1), strict=True)
        alike = [sum(x[key] == y[key] for key in x) / len(x) for x, y in read]
        values = make_reward("labels", readers=folder.parent)(a, b)
        torch.testing.assert_close(values, torch.tensor(alike))
    finally:
        folder.rename(readers)


def test_the_embedded_models_reader() -> None:
    a = pictures(2, 128, 128)
    r = make_reward("reader + labels", readers=READERS)
    assert not r.differentiable
    assert r(a, a).tolist() == [101.0, 101.0] and (r(a.flip(0), a) < 40).all()


def test_a_sum_is_the_sum_of_its_parts(spec: Callable[[str], str], reward: Callable[[str], Reward]) -> None:
    a, b = pictures(3, seed=1), pictures(3, seed=2)
    r = make_reward(f"psnr + 20*{spec('reader')} - 0.5*ssim - 2*{spec('dino')}")
    expected = reward("psnr")(a, b) + 20 * reward("reader")(a, b)
    expected = expected - 0.5 * reward("ssim")(a, b) - 2 * reward("dino")(a, b)
    torch.testing.assert_close(r(a, b), expected)
    features = r.features(b)
    assert features.shape[0] == 3 and features.dim() == 2
    which = [2, 2, 0]
    torch.testing.assert_close(r.similarity(r.features(a)[which], features[which]), expected[which])
    torch.testing.assert_close(r.similarity(r.features(a), features[:1])[0], expected[0])
    x = a.clone().requires_grad_()
    assert r.differentiable
    (gradient,) = torch.autograd.grad(r(x, b).sum(), x)
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    assert not make_reward(f"psnr + {spec('labels')}").differentiable


def test_features_of_a_sum_are_computed_once() -> None:
    calls: list[str] = []

    def part(name: str) -> Part:
        def features(x: Tensor) -> Tensor:
            calls.append(name)
            return x[:, 0]

        return Part(features, lambda a, b: -(a - b).abs().amax(dim=(1, 2)))

    features, similarity = combine([part("a"), part("b")], [1.0, 3.0])
    x, y = pictures(2), pictures(2, seed=1)
    target = features(y)
    for _ in range(2):
        value = similarity(features(x), target)
    assert calls == ["a", "b"] * 3
    torch.testing.assert_close(value, -4 * (x - y)[:, 0].abs().amax(dim=(1, 2)))


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("psnr", [(1, "psnr", "")]),
        (" 2*psnr ", [(2, "psnr", "")]),
        ("-0.5 * lpips", [(-0.5, "lpips", "")]),
        ("psnr + 20*reader - 0.5*lpips", [(1, "psnr", ""), (20, "reader", ""), (-0.5, "lpips", "")]),
        ("psnr - -1e-3*ssim", [(1, "psnr", ""), (0.001, "ssim", "")]),
        ("clip:openai/clip-vit-base-patch32", [(1, "clip", "openai/clip-vit-base-patch32")]),
        ("2*depth:/my models/a-b*c:d  -  ssim", [(2, "depth", "/my models/a-b*c:d"), (-1, "ssim", "")]),
    ],
)
def test_parsing(text: str, terms: list[tuple[float, str, str]]) -> None:
    assert [(t.factor, t.name, t.weights) for t in parse(text)] == terms


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("psnr+20*ssim", "'psnr+20*ssim' as a term"),
        ("psnr + two*ssim", "'two*ssim' as a term"),
        ("nan*psnr", "'nan*psnr' as a term"),
        ("psnr +", "'psnr +' as a term"),
        ("", "'' as a term"),
        ("clip:", "'clip:' as a term"),
        ("psnr + beauty", "no reward 'beauty'"),
        ("psnr:file", "psnr has no network"),
    ],
)
def test_what_cannot_be_parsed(text: str, term: str) -> None:
    with pytest.raises(RewardError, match=re.escape(term)) as caught:
        make_reward(text)
    assert all(name in str(caught.value) for name in REWARDS) or "no network" in term


def test_missing_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spec: Callable[[str], str]) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RewardError, match=r"Cannot load nobody/nothing .*`hf download nobody/nothing`"):
        make_reward("clip:nobody/nothing")
    with pytest.raises(RewardError, match=r"Cannot load .*Give a folder with a Dinov2Model"):
        make_reward(f"dino:{tmp_path}")
    with pytest.raises(RewardError, match="Give a folder with a Segformer"):
        make_reward(f"psnr + segmentation:{tmp_path / 'nowhere'}")
    with pytest.raises(RewardError, match="is not a Dinov2Model: it lacks"):
        make_reward(spec("depth").replace("depth", "dino", 1))
    with pytest.raises(RewardError, match=r"no scene reader in reward.*--readers"):
        make_reward("labels")


def test_missing_image_processor(tmp_path: Path) -> None:
    tiny_dino(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(RewardError, match="Cannot read the image processor"):
        make_reward(f"dino:{tmp_path}")


@pytest.mark.parametrize(("name", "package"), [("inception", "timm"), ("lpips", "torchmetrics")])
def test_missing_packages(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RewardError, match=f"{package}.*pip install -r requirements-rewards.txt"):
        make_reward(name)


def test_missing_weights_of_lpips(
    spec: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*args: Any, **options: Any) -> None:
        raise OSError("no network")

    spec("lpips")
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(RewardError, match=r"no network.*alexnet-owt-7be5be79\.pth.*lpips:FILE"):
        make_reward("lpips")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    for file in ("missing.pth", "junk.pth", "other.pth"):
        with pytest.raises(RewardError, match="Cannot read AlexNet's weights"):
            make_reward(f"lpips:{tmp_path / file}")


def test_networks_do_not_learn(spec: Callable[[str], str]) -> None:
    from transformers import Dinov2Model

    network = load(Dinov2Model, spec("dino").removeprefix("dino:"), "")
    assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_importing_rewards_brings_neither_transformers_nor_the_app() -> None:
    names = {"transformers", "diffusers", "app"}
    code = f"import sys, solver.training.rewards; print({names!r} & sys.modules.keys())"
    root = Path(__file__).parents[3]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
