"""Compiling happens beside the work: nobody waits for it, and nobody sees it in the results."""

import threading
from typing import Any

import pytest
import torch
from torch import nn

from app.models.compiled import TRIES, Compiled

pytestmark = pytest.mark.slow

PATIENCE_S = 300


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8))

    def forward(self, x: torch.Tensor, extra: dict[str, torch.Tensor]) -> tuple[torch.Tensor]:
        return (self.layers(x) + extra["shift"],)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return Network().eval().requires_grad_(False)


def call(network: Any, rows: int) -> torch.Tensor:
    x = torch.linspace(-1, 1, rows * 8).view(rows, 8)
    return network(x, {"shift": x / 2})[0]


def test_the_first_call_does_not_wait_and_later_ones_are_compiled(network: nn.Module) -> None:
    compiled = Compiled(network, buckets=(2, 4))
    with torch.inference_mode():
        for rows in (1, 3):
            expected = call(network, rows)
            assert torch.equal(call(compiled, rows), expected)  # as it is, at once
        assert compiled.wait(PATIENCE_S) and compiled.shapes_ready == 2
        for rows in (1, 2, 3, 4, 5):  # padded to 2 and 4; 5 is never compiled
            torch.testing.assert_close(call(compiled, rows), call(network, rows), rtol=1e-5, atol=1e-6)
    assert compiled.shapes_ready == 2


def test_work_goes_on_while_compiling(network: nn.Module) -> None:
    release, compiling = threading.Event(), threading.Event()

    def slow(_: nn.Module) -> None:
        compiling.set()
        release.wait(PATIENCE_S)

    compiled = Compiled(network, prepare=slow)
    call(compiled, 1)
    assert compiling.wait(PATIENCE_S)
    for _ in range(3):
        assert torch.equal(call(compiled, 1), call(network, 1))
    assert compiled.shapes_ready == 0 and not compiled.wait(0)
    release.set()
    assert compiled.wait(PATIENCE_S) and compiled.shapes_ready == 1


def test_weights_are_shared_and_the_network_itself_stays_as_it_is(network: nn.Module) -> None:
    compiled = Compiled(network)
    call(compiled, 2)
    assert compiled.wait(PATIENCE_S)
    next(network.parameters()).zero_()
    torch.testing.assert_close(call(compiled, 2), call(network, 2))
    assert network._compiled_call_impl is None
    assert compiled.layers is network.layers


@pytest.mark.parametrize("failing", [1, TRIES - 1])
@pytest.mark.parametrize("where", ["prepare", "call"])
def test_what_fails_now_and_then_is_compiled_all_the_same(
    network: nn.Module, caplog: Any, where: str, failing: int
) -> None:
    calls = 0

    def fail_at_first(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls <= failing:
            raise SystemError("AST constructor recursion depth mismatch")

    def prepare(copied: nn.Module) -> None:
        if where == "prepare":
            fail_at_first()
        else:
            copied.register_forward_pre_hook(fail_at_first)

    compiled = Compiled(network, prepare=prepare)
    for ready, rows in enumerate((1, 2), 1):
        call(compiled, rows)
        assert compiled.wait(PATIENCE_S) and compiled.shapes_ready == ready
    assert caplog.text.count("trying again") == failing and "uncompiled" not in caplog.text


def test_where_compiling_fails_the_network_goes_on(network: nn.Module, caplog: Any) -> None:
    def broken(_: nn.Module) -> None:
        raise RuntimeError("no compiler")

    compiled = Compiled(network, prepare=broken)
    for rows in (1, 2):
        assert torch.equal(call(compiled, rows), call(network, rows))
        assert compiled.wait(PATIENCE_S)
    assert compiled.shapes_ready == 0 and "it runs uncompiled" in caplog.text
