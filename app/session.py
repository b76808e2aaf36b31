"""What one browser tab is looking at: its grid of previews, and the jobs that still run for it."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from app.handle import Handle
from app.job import Job, Record
from app.speculation import Guesses


@dataclass
class Tile:
    """One preview of a grid. picture and record are None until it is finished; shown is its data URL."""

    job: Job
    step: int = 0
    steps: int = 0
    shown: str = ""
    problem: str = ""
    picture: Image.Image | None = None
    record: Record | None = None


@dataclass
class Grid:
    """Previews that are shown together. A pick names the grid's id, so that a stale one is recognised."""

    tiles: list[Tile]
    note: str = ""
    ignored: tuple[str, ...] = ()
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def busy(self) -> bool:
        return any(not tile.picture and not tile.problem for tile in self.tiles)

    def find(self, seed: object) -> Tile | None:
        """The tile of a seed, if it is in this grid."""
        return next((tile for tile in self.tiles if tile.job.seed == seed), None)

    def asks_the_same(self, jobs: Sequence[Job]) -> bool:
        """Whether these jobs would make this grid again, but for the seeds."""
        mine = [replace(tile.job, seed=0) for tile in self.tiles]
        return mine == [replace(job, seed=0) for job in jobs]


@dataclass
class Session:
    """A tab's grid, what its stage shows, and its running jobs."""

    grid: Grid | None = None
    previews: list[Handle] = field(default_factory=list)
    refinement: Handle | None = None
    guesses: Guesses = field(default_factory=Guesses)
    stage: dict[str, Any] | None = None
