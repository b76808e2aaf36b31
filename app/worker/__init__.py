"""The worker: one thread that makes every picture, one network call a tick."""

from app.worker.loop import Worker

__all__ = ["Worker"]
