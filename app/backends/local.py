"""The worker in this process."""

from app.models import Choice, open_model
from app.worker import Worker


def start(choice: Choice) -> Worker:
    """See `app.backends.start`."""
    return Worker(open_model(choice))
