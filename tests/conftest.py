"""A worker and a served page with the tiny model."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import checkpoints  # noqa: F401 - registers the embedded model's classes, whichever test runs first
from app.jobs.job import Job
from app.models import ImageModel, load
from app.worker import Worker
from app.worker.costs import Costs
from solver.diffusion import LatentDiffusion
from tests.tiny_landscapes import build_tiny_model

# The longest wait for a state, and for a tab to come back after a refresh. Long enough for a busy machine.
PATIENCE_S = 300
GRACE_S = 60.0
# What ticks of the tiny model cost. Measured by each worker, a busy moment would decide how all its tests go.
COSTS = Costs((1, 2, 4, 8, 16), (0.004, 0.005, 0.007, 0.010, 0.017), decode_s=0.003, encode_s=0.002)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that loads like checkpoints/landscapes: 64 × 64 pixels from 8 × 8 latents, in milliseconds."""
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def model(tiny_folder: Path) -> ImageModel:
    return load(tiny_folder, torch.device("cpu"))


@pytest.fixture
def worker(model: ImageModel) -> Iterator[Worker]:
    worker = Worker(model, costs=COSTS)
    yield worker
    worker.close()


@dataclass(frozen=True)
class Served:
    """A running app: its address, its page, its worker, and the folder that it writes to."""

    url: str
    page: Any
    worker: Worker
    data: Path

    @property
    def pictures(self) -> Path:
        """Where pictures for programs are."""
        return self.data / "gradio" / "pictures"


@pytest.fixture(scope="session")
def url(served: Served) -> str:
    return served.url


@pytest.fixture(scope="session")
def served(model: ImageModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    data = tmp_path_factory.mktemp("data")
    os.environ["GRADIO_TEMP_DIR"] = str(data / "gradio")
    from app.server.service import build_app, launch_page

    worker = Worker(model, costs=COSTS)
    page = build_app(worker, data, grace_s=GRACE_S)
    yield Served(launch_page(page, "127.0.0.1", free_port()), page, worker, data)
    page.close()
    worker.close()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class InterceptedModel(ImageModel):
    """A model whose network is called through `denoise`, for tests to override."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        object.__setattr__(self, "diffusion", _Intercepted(self.diffusion, lambda *args: self.denoise(*args)))

    def denoise(self, *args: Any) -> torch.Tensor:
        return self.diffusion.original.denoise(*args)  # type: ignore[attr-defined]


class _Intercepted:
    def __init__(self, original: LatentDiffusion, denoise: Callable[..., torch.Tensor]) -> None:
        self.original, self.denoise = original, denoise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


def make_job(tiny: ImageModel, **changes: object) -> Job:
    """A small job for the tiny model."""
    fields: dict = {
        "kind": "preview",
        "prompt": "snowy mountains",
        "seed": 1,
        "steps": 4,
        "model": tiny.facts.name,
        "width": tiny.facts.width,
        "height": tiny.facts.height,
    }
    return Job(**(fields | changes))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that opens the page in a browser."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent / "browser"):
            item.add_marker(pytest.mark.browser)
