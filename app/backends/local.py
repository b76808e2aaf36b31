"""The worker in this process."""

from pathlib import Path

from app.models import load, pick_device
from app.worker import Worker


def start(folder: Path, device: str) -> Worker:
    """See `app.backends.start`."""
    return Worker(load(folder, pick_device(device)))
