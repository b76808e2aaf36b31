"""A worker and a served page with the tiny model."""

import os
from collections.abc import Iterator
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


@pytest.fixture(scope="session")
def url(model: ImageModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running app."""
    pictures = tmp_path_factory.mktemp("pictures")
    os.environ["GRADIO_TEMP_DIR"] = str(pictures)
    from app.ui import build_page, launch_page

    worker = Worker(model)
    page = build_page(worker, pictures)
    yield launch_page(page, "127.0.0.1", free_port())
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
        "model": tiny.name,
        "size": tiny.size,
    }
    return Job(**(fields | changes))
