"""Sessions, and a studio with the tiny model."""

from pathlib import Path

import pytest

from app.history.shelf import History
from app.page.click import Studio
from app.page.session import Session
from app.page.sketches import Sketches
from app.worker import Worker
from tests.app.page.clicks import NewSession


@pytest.fixture
def new_session(tmp_path: Path) -> NewSession:
    """Makes sessions, each of a browser of its own."""
    history = History(tmp_path / "history")
    numbers = iter(range(1000))
    return lambda: Session(history.shelf(f"{next(numbers):064x}"))


@pytest.fixture
def studio(worker: Worker) -> Studio:
    return Studio(worker, Sketches())
