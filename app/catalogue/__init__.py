"""Which models there are (`table`), where each is found (`finding`), and what fits a device (`fitting`).

`python -m app.catalogue` prints the table.
"""

from app.catalogue.finding import Found, find, is_local, name_of
from app.catalogue.fitting import OFFLOADS, check_fits, free_memory, memory_needed
from app.catalogue.table import ROWS, ModelError, Row, row_of

__all__ = [
    "OFFLOADS",
    "ROWS",
    "Found",
    "ModelError",
    "Row",
    "check_fits",
    "find",
    "free_memory",
    "is_local",
    "memory_needed",
    "name_of",
    "row_of",
]
