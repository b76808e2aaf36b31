"""Other ways to run the worker than in this process; each looks like `app.backends.base.Backend`."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.backends.base import Backend
    from app.models import Choice

# By the names that --backend understands: the modules whose `start(choice)` gives a Backend. They are
# imported when they are wanted, since that takes seconds.
BACKENDS = {
    "local": "app.backends.local",
    "zerogpu": "app.backends.zerogpu",
    "ray": "app.backends.cluster",
}


def start(name: str, choice: "Choice", **options: Any) -> "Backend":
    """Start the backend `name`, one of BACKENDS or "auto", for a model.

    options: what that backend takes on top. Raises ModelError, in words, where the choice or the options
    can't be used.
    """
    if name == "auto":
        name = "zerogpu" if on_zerogpu() else "local"
    return import_module(BACKENDS[name]).start(choice, **options)


def loads_beside(name: str) -> bool:
    """Whether the backend `name` can start in a thread, so that the page is there before the model."""
    return name == "local" or (name == "auto" and not on_zerogpu())


def on_zerogpu() -> bool:
    """Whether this is a Hugging Face Space with ZeroGPU, as the package `spaces` decides it."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
