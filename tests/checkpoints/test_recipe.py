"""The recipe: scenes that can be, drawings that show them, captions that say them, training that resumes."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from checkpoints.recipe import data
from checkpoints.recipe.average import average
from checkpoints.recipe.captions import caption, vocabulary
from checkpoints.recipe.drawing import draw, draw_with_layout
from checkpoints.recipe.drawing.canvas import KINDS, LAYOUT_SIZE
from checkpoints.recipe.fit import LossFn, MuonWithAdamW, branch, factor_by_time, fit, warmup_stable_decay
from checkpoints.recipe.scenes import ATTRIBUTES, Scene, sample_scene
from checkpoints.recipe.train_text import MAX_TOKENS, make_tokenizer
from checkpoints.recipe.train_unet import (
    WithLayout,
    compiled,
    deepened,
    draw_timesteps,
    make_unet,
    min_snr_weight,
)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(0)
    return [sample_scene(rng) for _ in range(3000)]


def test_every_value_of_every_attribute_occurs(scenes: list[Scene]) -> None:
    assert len(ATTRIBUTES) >= 12
    assert sum(map(len, ATTRIBUTES.values())) >= 40
    for name, values in ATTRIBUTES.items():
        assert {getattr(scene, name) for scene in scenes} == set(values)


def test_scenes_obey_physics(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.boat == "none" or scene.water in ("lake", "sea")
        assert scene.stars == "none" or scene.time in ("dusk", "night")
        assert scene.light != "sun" or scene.time in ("dawn", "day", "sunset")
        assert scene.light == "none" or scene.clouds != "overcast"


def test_labels_round_trip(scenes: list[Scene]) -> None:
    assert all(Scene.from_labels(scene.labels()) == scene for scene in scenes[:50])


def test_an_impossible_value_is_refused_in_words(scenes: list[Scene]) -> None:
    with pytest.raises(ValueError, match="time is 'noonish'; it must be one of dawn"):
        Scene(**{**scenes[0].__dict__, "time": "noonish"})


def test_a_drawing_is_its_seed_and_seeds_differ(scenes: list[Scene]) -> None:
    for scene in scenes[:20]:
        first, again, other = (draw(scene, np.random.default_rng(s)) for s in (1, 1, 2))
        assert first.shape == (256, 256, 3) and first.dtype == np.uint8
        assert np.array_equal(first, again)
        assert np.abs(first.astype(int) - other).mean() > 2


@pytest.mark.parametrize(
    "attribute", ["water", "building", "birds", "vegetation", "weather", "path", "flowers"]
)
def test_what_a_scene_names_changes_the_picture(scenes: list[Scene], attribute: str) -> None:
    scene = next(
        s
        for s in scenes
        if s.ground == "grass" and s.clouds == "clear" and getattr(s, attribute) not in ("none", "calm")
    )
    without = Scene(**{**scene.__dict__, attribute: ATTRIBUTES[attribute][0], "boat": "none"})
    shown, missing = (draw(s, np.random.default_rng(3)).astype(int) for s in (scene, without))
    assert (np.abs(shown - missing).max(axis=2) > 16).mean() > 0.002


def test_captions_say_what_they_name_and_fit_the_tokenizer(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(1)
    tokenizer = make_tokenizer()
    lengths, openings = [], set()
    for scene in scenes:
        words, named = caption(scene, rng)
        assert named and all(getattr(scene, a) == v for a, v in named.items())
        ids = tokenizer(words).input_ids
        assert tokenizer.unk_token_id not in ids, words
        lengths.append(len(ids))
        openings.add(words)
    assert max(lengths) <= MAX_TOKENS
    assert min(lengths) <= 6 and np.percentile(lengths, 95) >= 28  # short and long
    assert len(openings) > 0.9 * len(scenes)  # hardly ever the same words twice


@pytest.mark.parametrize(
    "word",
    "dusk evening firs cabin ocean beach sunrise forest snowy mountains lake river birds stars".split(),  # noqa: SIM905
)
def test_words_people_type_are_known(word: str) -> None:
    assert word in vocabulary()


def test_the_tokenizer_ignores_case_and_punctuation_and_marks_strangers() -> None:
    tokenizer = make_tokenizer()
    plain = tokenizer("snowy mountains at sunset").input_ids
    assert tokenizer("  Snowy-mountains, at SUNSET!").input_ids != plain  # the comma counts
    assert tokenizer("  Snowy-mountains at SUNSET!").input_ids == plain
    assert tokenizer("a zebra").input_ids.count(tokenizer.unk_token_id) == 1
    assert len(tokenizer("").input_ids) == 2


def test_rendering_resumes_and_is_the_same_in_any_number_of_workers(tmp_path: Path) -> None:
    data.render(tmp_path, 70, workers=2)
    pictures, labels = data.load(tmp_path)
    assert len(pictures) == 2 * data.CHUNK
    picture, scene = data.picture_of("train", 65)
    assert np.array_equal(pictures[65], picture) and np.array_equal(labels[65], scene.labels())
    layout = draw_with_layout(*data.scene_of("train", 65))[1]
    assert np.array_equal(data.load_layouts(tmp_path)[65], layout)
    done = np.load(tmp_path / "done.npy")
    done[1] = False
    np.save(tmp_path / "done.npy", done)
    with pytest.raises(RuntimeError, match="incomplete"):
        data.load(tmp_path)
    data.render(tmp_path, 70, workers=1)
    assert np.array_equal(data.load(tmp_path)[0][65], picture)


def test_drawings_without_layout_maps_are_rendered_again(tmp_path: Path) -> None:
    data.render(tmp_path, 1, workers=1)
    (tmp_path / "layouts.npy").unlink()
    data.render(tmp_path, 1, workers=1)
    assert data.load_layouts(tmp_path).any()


def test_loading_before_rendering_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m checkpoints\.recipe\.data"):
        data.load(tmp_path)


def _toy() -> tuple[nn.Sequential, LossFn]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, 1, 3, padding=1))

    def loss_fn(model: nn.Module, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        x = torch.from_numpy(rng.normal(size=(4, 2, 8, 8))).float()
        loss = (model(x) - x.sum(1, keepdim=True).square()).square().mean()
        return loss, {"twice": 2 * loss.item()}

    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model, loss_fn


def test_a_run_cut_off_and_resumed_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    def train(folder: Any, steps: int) -> nn.Module:
        model, loss_fn = _toy()
        return fit(
            folder, model, loss_fn, steps=steps, learning_rate=3e-3, device=torch.device("cpu"), warmup=5,
            decay=0.0, ema_decay=0.9,
        )  # fmt: skip

    whole = train(tmp_path / "whole", 30)
    train(tmp_path / "parts", 13)
    resumed = train(tmp_path / "parts", 30)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_training_descends_and_moves_kernels_of_any_memory_layout(tmp_path: Path) -> None:
    model, loss_fn = _toy()
    before = [p.detach().clone() for p in model.parameters()]
    first = loss_fn(model, np.random.default_rng(5))[0].item()
    trained = fit(
        tmp_path, model, loss_fn, steps=150, learning_rate=3e-3, device=torch.device("cpu"), warmup=5
    )
    assert loss_fn(trained, np.random.default_rng(5))[0].item() < 0.6 * first
    assert all(not torch.equal(a, b) for a, b in zip(before, trained.parameters(), strict=True))


def test_muon_leaves_frozen_weights_alone() -> None:
    model, loss_fn = _toy()
    kernel = next(model.parameters()).requires_grad_(False)
    frozen = kernel.clone()
    optimizer = MuonWithAdamW(model, weight_decay=0.1)
    loss_fn(model, np.random.default_rng(0))[0].backward()
    optimizer.step(1e-2)
    assert torch.equal(kernel, frozen)


def test_muon_moves_matrices_as_that_of_torch_does() -> None:
    torch.manual_seed(1)
    layers = [nn.Linear(6, 4), nn.Linear(4, 6), nn.Linear(6, 4)]
    model = nn.Sequential(*layers)
    theirs = [nn.Parameter(layer.weight.detach().clone()) for layer in layers]
    muon = torch.optim.Muon(theirs, lr=5e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    ours = MuonWithAdamW(model, weight_decay=0.1)
    for _ in range(3):
        for layer, other in zip(layers, theirs, strict=True):
            layer.weight.grad = torch.randn_like(other)
            other.grad = layer.weight.grad.clone()
        ours.step(1e-2)
        muon.step()
    for layer, other in zip(layers, theirs, strict=True):
        torch.testing.assert_close(layer.weight.data, other.data, atol=5e-3, rtol=0)


def test_a_learning_rate_by_time_is_zero_when_the_time_is_over() -> None:
    factors = [factor_by_time(step, 6.0 * step, 600, warmup=10, decay=0.5) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and factors[9:51] == [1.0] * 42
    assert all(a > b for a, b in pairwise(factors[50:])) and factors[100] == pytest.approx(0)
    assert factor_by_time(0, 0.0, -5.0, warmup=10, decay=0.5) == 0  # none was left to begin with


def test_a_branch_goes_on_from_the_run_and_leaves_it_as_it_is(tmp_path: Path) -> None:
    model, loss_fn = _toy()
    options: dict[str, Any] = dict(learning_rate=3e-3, device=torch.device("cpu"), warmup=5, ema_decay=0.9)
    fit(tmp_path / "run", model, loss_fn, steps=20, decay=0.0, **options)
    state = (tmp_path / "run" / "state.pt").read_bytes()
    branch(tmp_path / "run", tmp_path / "branch")
    cooled = fit(tmp_path / "branch", _toy()[0], loss_fn, steps=0, minutes=0.02, decay=1.0, **options)
    assert torch.load(tmp_path / "branch" / "state.pt")["step"] > 20
    rng = np.random.default_rng
    assert loss_fn(cooled, rng(5))[0] < loss_fn(_toy()[0], rng(5))[0]
    assert (tmp_path / "run" / "state.pt").read_bytes() == state
    with pytest.raises(FileNotFoundError, match="no run in"):
        branch(tmp_path / "nowhere", tmp_path / "branch")


def test_learning_rate_warms_up_holds_and_decays_to_nothing() -> None:
    factors = [warmup_stable_decay(s, 100, warmup=10, decay=0.3) for s in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9:70] == [1.0] * 61
    assert all(a > b for a, b in pairwise(factors[70:])) and factors[-1] < 0.05


def test_min_snr_weight_is_one_where_noise_rules_and_falls_where_signal_does() -> None:
    alphas_cumprod = torch.tensor([0.999, 0.9, 5 / 6, 0.5, 0.1])
    weights = min_snr_weight(alphas_cumprod)
    assert torch.allclose(weights[2:], torch.ones(3))
    assert weights[0] < weights[1] < 1


def test_a_deepened_network_computes_what_the_shallow_one_did_and_can_learn_more() -> None:
    torch.manual_seed(0)
    shallow = UNet2DConditionModel.from_config(make_unet().config, layers_per_block=1).eval()
    deep = deepened(shallow).eval()
    x, t, text = torch.randn(2, 16, 16, 16), torch.tensor([100, 700]), torch.randn(2, 64, 128)
    with torch.no_grad():
        assert torch.equal(shallow(x, t, text).sample, deep(x, t, text).sample)
    deep(x, t, text).sample.square().mean().backward()
    assert deep.down_blocks[0].resnets[1].conv2.weight.grad.abs().max() > 0


def test_the_layout_layer_leaves_the_prediction_alone_and_teaches_the_way_up() -> None:
    torch.manual_seed(0)
    model = WithLayout(make_unet())
    x, t, text = torch.randn(2, 16, 16, 16), torch.tensor([100, 700]), torch.randn(2, 64, 128)
    noise, layout = model(x, t, text)
    assert layout.shape == (2, len(KINDS), LAYOUT_SIZE, LAYOUT_SIZE)
    assert torch.equal(noise, model.unet(x, t, text).sample)
    nn.init.normal_(model.head.weight)
    model(x, t, text)[1].square().mean().backward()
    assert model.unet.up_blocks[1].resnets[0].conv1.weight.grad.abs().max() > 0
    assert model.unet.up_blocks[2].resnets[0].conv1.weight.grad is None


@pytest.mark.slow
def test_the_network_is_compiled_once_and_learns_the_same() -> None:
    torch.manual_seed(0)
    model = WithLayout(make_unet()).train()
    device = torch.device("cpu")
    fast = compiled(model, 3, device, backend="aot_eager", fullgraph=True)
    assert fast is not model and all(p.grad is None for p in model.parameters())
    gradients = []
    for predict in (fast, model):
        torch.manual_seed(1)
        x = torch.randn(3, 16, 16, 16).contiguous(memory_format=torch.channels_last)
        # Not by monkeypatch: its undoing would remove the setting, and nothing could be compiled any more.
        with torch.autocast("cpu", torch.bfloat16), torch._dynamo.config.patch(error_on_recompile=True):
            noise, layout = predict(x, draw_timesteps(3), torch.randn(3, 64, 128))
        (noise.float().square().mean() + layout.float().square().mean()).backward()
        gradients.append(model.unet.conv_in.weight.grad)
        model.zero_grad(set_to_none=True)
    torch.testing.assert_close(*gradients, rtol=0.1, atol=1e-3)


def test_what_does_not_compile_is_trained_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    model = WithLayout(make_unet())
    assert compiled(model, 1, torch.device("cpu"), backend="no such compiler") is model
    assert "training without it" in capsys.readouterr().out


def test_another_network_is_not_deepened() -> None:
    other = UNet2DConditionModel.from_config(make_unet().config, layers_per_block=(3, 1, 1))
    with pytest.raises(ValueError, match="train from anew"):
        deepened(other)


def test_timesteps_cover_the_schedule_and_most_of_them_its_middle() -> None:
    torch.manual_seed(0)
    t = draw_timesteps(100_000)
    assert t.min() == 0 and t.max() == 999
    shares = torch.histc(t.float(), 5, 0, 1000) / len(t)
    assert shares[2] > shares[1] > shares[0] > 0.1
    assert shares[2] > shares[3] > shares[4] > 0.1


def test_a_mean_of_networks_is_that_of_their_weights() -> None:
    config = dict(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1, mid_block_type=None,
    )  # fmt: skip
    one, other = UNet2DConditionModel(**config), UNet2DConditionModel(**config)
    mean = average([one, other])
    for name, value in mean.state_dict().items():
        assert torch.allclose(value, (one.state_dict()[name] + other.state_dict()[name]) / 2)
    wider = UNet2DConditionModel(**(config | {"block_out_channels": (8, 16)}))
    for networks in ([], [one, wider]):
        with pytest.raises(ValueError, match="built alike"):
            average(networks)
