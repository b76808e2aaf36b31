"""Scene readers: networks that say what a picture shows. Who has some registers them here.

The embedded model's readers register themselves when `checkpoints` is imported, so that nothing in this
package imports them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

_classes: dict[str, Any] = {}


def register_reader(role: str, cls: Any) -> None:
    """Make a reader's class known: "judge" for one that only judges, "reward" for one to train by."""
    _classes[role] = cls


def reader_class(role: str) -> Any:
    """Return the class that was registered for a role.

    Raises:
        LookupError: none was; says how.
    """
    if role not in _classes:
        raise LookupError(
            f"No scene reader is registered as {role!r}: `import checkpoints` first, which has the embedded "
            "model's, or call solver.readers.register_reader with a class of yours."
        )
    return _classes[role]


def reader_features(reader: Any, pictures: Tensor) -> Tensor:
    """Return the features that a reader sees, attribute by attribute: [B, attributes, width].

    Args:
        pictures: in [0, 1], [B, 3, H, W], of any size; the reader averages them down to 128 × 128.
    """
    return reader.features(2 * pictures.float() - 1)
