"""Backends: the places where the worker can run; each is an `app.backends.base.Backend`."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.backends.base import Backend
    from app.models import Choice

# Value of --backend -> module with a function `start(choice)`. Imported on demand, since that takes seconds.
BACKENDS = {
    "local": "app.backends.local",
    "zerogpu": "app.backends.zerogpu",
    "ray": "app.backends.cluster",
}


def start(name: str, choice: "Choice", **options: Any) -> "Backend":
    """Start a backend for a model.

    Args:
        name: a key of BACKENDS, or "auto" for ZeroGPU on such a Space and this process elsewhere.
        options: further arguments of that backend's `start`.

    Raises:
        ModelError: the model or an option cannot be used; the message says what to do.
    """
    if name == "auto":
        name = "zerogpu" if on_zerogpu() else "local"
    return import_module(BACKENDS[name]).start(choice, **options)


def loads_beside(name: str) -> bool:
    """Whether the backend can start in a thread while the page is served already."""
    return name == "local" or (name == "auto" and not on_zerogpu())


def on_zerogpu() -> bool:
    """Whether this is a Hugging Face Space with ZeroGPU, by the same rule as the package `spaces`."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
