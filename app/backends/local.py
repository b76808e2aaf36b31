"""The worker in this process."""

from app.models import Choice, open_model
from app.worker import Worker


def start(choice: Choice) -> Worker:
    """Open the model and start its worker; see `app.backends.start`."""
    return Worker(open_model(choice))
