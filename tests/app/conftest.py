"""A worker and a served page with the tiny model."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from app.job import Job
from app.models import ImageModel, load
from app.worker import Worker


@pytest.fixture(scope="session")
def model(tiny_folder: Path) -> ImageModel:
    return load(tiny_folder, torch.device("cpu"))


@pytest.fixture
def worker(model: ImageModel) -> Iterator[Worker]:
    worker = Worker(model)
    yield worker
    worker.close()


@dataclass(frozen=True)
class Served:
    """A running app: its address, its worker, and where it puts pictures."""

    url: str
    worker: Worker
    pictures: Path


@pytest.fixture(scope="session")
def url(served: Served) -> str:
    return served.url


@pytest.fixture(scope="session")
def served(model: ImageModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pictures = tmp_path_factory.mktemp("gradio") / "pictures"
    os.environ["GRADIO_TEMP_DIR"] = str(pictures.parent)
    from app.ui import build_page, launch_page

    worker = Worker(model)
    page = build_page(worker, pictures)
    yield Served(launch_page(page, "127.0.0.1", free_port()), worker, pictures)
    page.close()
    worker.close()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_job(tiny: ImageModel, **changes: object) -> Job:
    """A small job for the tiny model."""
    fields: dict = {
        "kind": "preview",
        "prompt": "snowy mountains",
        "seed": 1,
        "steps": 4,
        "model": tiny.facts.name,
        "size": tiny.facts.size,
    }
    return Job(**(fields | changes))
