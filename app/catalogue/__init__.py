"""The models that have a name (`table`), where their files are (`finding`), what fits a device (`fitting`).

`python -m app.catalogue` prints the table.
"""

from app.catalogue.finding import Found, find, is_local, name_of
from app.catalogue.fitting import OFFLOADS, check_fits, free_memory, memory_needed
from app.catalogue.table import CATALOGUE, CatalogueEntry, ModelError, entry_for

__all__ = [
    "CATALOGUE",
    "OFFLOADS",
    "CatalogueEntry",
    "Found",
    "ModelError",
    "check_fits",
    "entry_for",
    "find",
    "free_memory",
    "is_local",
    "memory_needed",
    "name_of",
]
