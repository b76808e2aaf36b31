"""A click: the values that the browser sends, the session of its tab, and the backend for its pictures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.backends.base import Backend
from app.jobs.job import RequestError
from app.page.session import Grid, Session, Tile
from app.page.sketches import Sketches


@dataclass(frozen=True)
class Form:
    """The page's form as the browser sends it, not checked yet.

    Attributes:
        count: number of previews.
        steps: solver steps of a preview.
        solver: of the previews.
        random_seeds: draw fresh seeds instead of counting up from `seed`.
        full_steps: solver steps of a refinement.
        size: a name of `app.page.form.sizes_of`; None for the model's own size.
        variation: of the first preview, as `app.jobs.job.Variation.parse` reads it; see `build_jobs`. Random
            seeds have none.
        full_solver: of a refinement; "" for `Studio.final_solver`.
    """

    prompt: str = ""
    negative_prompt: str = ""
    count: float = 4
    steps: float = 6
    guidance: float = 3.0
    solver: str = "consistency"
    random_seeds: bool = True
    seed: float = 1
    full_steps: float = 40
    size: str | None = None
    variation: str = ""
    full_solver: str = ""


@dataclass(frozen=True)
class Studio:
    """The backend of a page, with its sketches.

    Attributes:
        backend: makes them.
        sketches: keeps pictures in the making, for the page to fetch.
        final_solver: refines, unless the form says otherwise.
    """

    backend: Backend
    sketches: Sketches
    final_solver: str = "dpm++2m"


@dataclass(frozen=True)
class Click:
    """A request of a page; the argument of all functions in `app.page.handlers`.

    Attributes:
        studio: makes the pictures.
        session: of the tab that asks.
        values: sent by the page's script, by name; not checked yet. "do" names the action; "grid" and "seed"
            name a preview.
        form: the form at that moment.
    """

    studio: Studio
    session: Session
    values: Mapping[str, Any] = field(default_factory=dict)
    form: Form = Form()

    @property
    def final_solver(self) -> str:
        """The solver of refinements."""
        return self.form.full_solver or self.studio.final_solver

    def grid(self) -> Grid:
        """Return the grid that values["grid"] names. Raises RequestError if the tab shows another one."""
        grid = self.session.grid
        if grid is None or self.values.get("grid") != grid.id:
            raise RequestError("These previews have been replaced. Please pick from those that you see now.")
        return grid

    def tile(self) -> Tile:
        """Return the finished preview of values["seed"] in `grid()`. Raises RequestError if there is none."""
        tile = self.grid().find(self.values.get("seed"))
        if tile is None or not tile.name:
            raise RequestError("That preview is not there. Pick one that you see.")
        return tile
