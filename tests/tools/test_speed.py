"""The measurements run on tiny networks of every shape; the configs are the real ones' to the last weight."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.catalogue import CATALOGUE
from tools.speed import __main__ as command
from tools.speed import measure
from tools.speed.measure import SWITCHES, Case, build, own, rows, stock, work
from tools.speed.shapes import SHAPES, Shape

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
NAMES = {"sd15": "sd15", "sdxl": "sdxl", "flux": "flux-dev"}
TINY_VAE = {"block_out_channels": (8,) * 4, "layers_per_block": 1, "norm_num_groups": 4}
BLOCKS = {"layers_per_block": 1, "norm_num_groups": 8, "sample_size": 8}
TINY = {
    "sd15": {"config": {"block_out_channels": (8, 16, 16, 16), "cross_attention_dim": 32, **BLOCKS}},
    "sdxl": {
        "config": {
            "block_out_channels": (8, 16, 16),
            "cross_attention_dim": 32,
            "attention_head_dim": (2, 4, 4),
            "transformer_layers_per_block": (1, 1, 2),
            "projection_class_embeddings_input_dim": 6 * 256 + 1280,
            **BLOCKS,
        }
    },
    "flux": {
        "config": {
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "axes_dims_rope": (4, 6, 6),
        }
    },
}


def tiny(name: str) -> Shape:
    """The shape with narrow networks."""
    real = SHAPES[name]
    changes: dict[str, Any] = {
        "config": {**real.config, **TINY[name]["config"]},
        "autoencoder": {**real.autoencoder, **TINY_VAE},
        "tokens": 5,
        "width": 32,
        "preview_decoder": {**(real.preview_decoder or {}), "decoder_block_out_channels": (8,) * 4},
    }
    return replace(real, **changes)


@pytest.mark.parametrize("name", SHAPES)
def test_configs_have_as_many_weights_as_the_catalogue_says(name: str) -> None:
    import diffusers

    row = next(row for row in CATALOGUE if row.name == NAMES[name])
    shape = SHAPES[name]
    with torch.device("meta"):
        denoiser = getattr(diffusers, shape.denoiser)(**shape.config)
        vae = diffusers.AutoencoderKL(**shape.autoencoder)
    for part, network in (("transformer" if shape.is_flux else "unet", denoiser), ("vae", vae)):
        assert sum(tensor.numel() for tensor in network.state_dict().values()) == row.parameters[part]


@pytest.mark.parametrize("name", SHAPES)
def test_every_switch_leaves_the_pictures_as_they_are(name: str) -> None:
    case = build(tiny(name), 64, CPU, torch.float32)
    assert len(stock(case)) == 4 and stock(case)[0].size == (64, 64)
    expected = np.stack([np.asarray(picture, dtype=int) for picture in own(case)])
    assert expected.shape == (4, 64, 64, 3) and expected.std() > 0
    for switch in ("channels last", "fused QKV"):
        SWITCHES[switch](case)
        made = np.stack([np.asarray(picture, dtype=int) for picture in own(case)])
        assert np.abs(made - expected).max() <= 1
    assert work(case) > 0


def test_a_compiled_network_is_as_it_was_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def compile(call: Any, **options: Any) -> Any:
        asked.append(options)
        return lambda x: x + 1

    monkeypatch.setattr(torch, "compile", compile)
    network = torch.nn.Linear(2, 2)
    x = torch.ones(1, 2)
    expected = network(x)
    with measure.compiled(network):
        assert torch.equal(network(x), x + 1)
    assert asked == [{"dynamic": False}] and torch.equal(network(x), expected)


def test_rows_of_a_tiny_model_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    network_compiled: list[str] = []

    @contextmanager
    def compiled(network: torch.nn.Module) -> Iterator[None]:
        network_compiled.append(type(network).__name__)  # which takes a minute for real
        yield

    monkeypatch.setattr(measure, "compiled", compiled)

    def make(precision: torch.dtype) -> Case:
        return build(tiny("sd15"), 64, CPU, precision)

    found = {row["name"]: row for row in rows(make, torch.float32, 1, rate=0.01)}
    assert list(found) == [
        "stock, float32",
        "stock, float32, compiled",
        "own loop, without SDPA",
        "own loop",
        "+ channels last",
        "+ fused QKV",
        "+ compiled blocks",
        "+ preview decoder",
    ]
    assert found["+ compiled blocks"]["compiled"] and found["+ compiled blocks"]["compiling_s"] > 0
    assert network_compiled == ["UNet2DConditionModel"]
    for row in list(found.values())[:2]:
        assert row["first_preview_s"] == row["seconds"] > 0
    for row in list(found.values())[2:]:
        assert 0 < row["first_preview_s"] <= row["seconds"] * 1.5
        assert row["of_matmul_rate"] == pytest.approx(row["denoiser_tflop_per_s"] / 0.01)


def test_command_writes_what_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    row = {"name": "stock", "seconds": 1.0, "first_preview_s": 1.0}
    monkeypatch.setattr(command, "SHAPES", {"sd15": tiny("sd15")})
    monkeypatch.setattr(command, "MATRIX_EDGE", {"cpu": 64})
    monkeypatch.setattr(command, "rows", lambda *_: iter([row]))
    file = tmp_path / "speed.json"
    monkeypatch.setattr(sys, "argv", ["speed", "--shapes", "sd15", "--device", "cpu", "--json", str(file)])
    assert command.main() == 0
    found = json.loads(file.read_text())
    assert found["rows"] == [row] and found["matmul_tflop_per_s"] > 0
    assert "stock" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["speed", "--size", "100"])
    with pytest.raises(SystemExit):
        command.main()
    assert "multiple of 64" in capsys.readouterr().err
