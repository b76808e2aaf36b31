"""One participant's way through a study: the phase they are in, their trials, and the log of both.

An event is in the log before the page shows its consequence. What a participant may do in each phase is in
`app.study.page.actions`.
"""

import logging
import secrets
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from app.backends.base import Backend
from app.jobs.job import Busy, RequestError
from app.page.click import Click, Form, Studio
from app.page.session import Session
from app.page.sketches import Sketches
from app.server.limits import Limits
from app.study.log import events
from app.study.log.enrolment import Enrolled
from app.study.log.recording import RecordingBackend
from app.study.log.resuming import read_progress
from app.study.log.writer import NotRecorded, Writer, wait_for
from app.study.plan import Study, Trial, trials
from app.study.plan.definition import ClosingQuestion

log = logging.getLogger("app.study")


@dataclass(frozen=True)
class Lab:
    """A running study.

    Attributes:
        log: where the events are; pictures that the study keeps are beside it.
        enrolments: how many participants one address may enrol.
    """

    study: Study
    writer: Writer
    log: str
    backend: Backend
    sketches: Sketches
    enrolments: Limits


class LabelledError(RequestError):
    """An error whose message is the name of the label to show."""


class Participation:
    """A participant's progress through a study; its session's lock guards it.

    Attributes:
        phase: consent, before (a trial, until the model is loaded), trial, rating, closing or thanks.
        number: of the current or last trial in `plan`.
        trial: the name of that trial in the log.
        outcome: how it ended: satisfied, gave_up or timed_out.
        final: the name on the shelf of the picture it ended with.
        trial_names: of all trials so far.
        address: that the latest click came from.
        resumed: whether the progress of this tab was read from the log.
    """

    def __init__(self, lab: Lab, session: Session) -> None:
        self.lab, self.session = lab, session
        self.phase = "consent"
        self.resumed = False
        self.who: Enrolled | None = None
        self.plan: list[Trial] = []
        self.number = -1
        self.trial, self.outcome, self.final = "", "", ""
        self.trial_names: set[str] = set()
        self.reports, self.address = 0, ""
        self._painted: set[tuple[str, str, int, str]] = set()
        self._began, self._again = 0.0, False
        self._timer: threading.Timer | None = None
        self._studio: Studio | None = None

    @property
    def now(self) -> Trial:
        """The current trial, or the last one."""
        return self.plan[self.number]

    @property
    def seconds(self) -> float:
        """Seconds since the current trial began."""
        return time.monotonic() - self._began

    @property
    def closing_questions(self) -> list[ClosingQuestion]:
        """The closing questions for this participant: free text only if they agreed that it is kept."""
        keeps = self.who is not None and self.who.free_text
        return [question for question in self.lab.study.closing if question.choices or keeps]

    def resume(self) -> None:
        """Continue where this tab was, by the log, when the app ended; does nothing the next time.

        Raises RequestError if the log can't be read; the next call tries again.
        """
        with self.session.lock:
            if self.resumed:
                return
            try:
                at = read_progress(self.lab.writer.store, self.lab.study, self.session.secret)
            except Exception as error:  # any error of a database
                log.exception("The log can't be read")
                raise RequestError(self.lab.study.labels["problem"]) from error
            if at:
                self.who, self.plan = at.who, trials(self.lab.study, at.who.place)
                if at.phase == "trial":
                    wait_for(self.note(events.Interrupted(), trial=at.trial))
                    self.session.tell(self.lab.study.labels["anew"])
                if at.phase in ("before", "trial"):
                    self.begin(at.number, again=at.phase == "trial")
                else:
                    self.phase, self.number = at.phase, at.number
                    self.trial, self.outcome = at.trial, at.outcome
                    self.final = self._picture_of(at.seed)
            self.resumed = True

    def catch_up(self) -> None:
        """Begin the trial that waits for the model; end the trial whose time is up."""
        if self.phase == "before":
            with suppress(NotRecorded):  # the next call tries again
                self.begin(self.number, self._again)
        if self.phase == "trial" and self.seconds >= self.lab.study.time_cap_s:
            self.note(events.GiveUp(True))
            self.end("timed_out")

    def click(self, values: Mapping[str, Any], form: Form | None = None) -> Click:
        """Return the ordinary page's click for one in the current trial."""
        assert self._studio
        form = form or Form(full_steps=self.now.condition.full_steps)
        return Click(self._studio, self.session, values, form)

    def begin(self, number: int, again: bool = False) -> None:
        """Begin a trial, or wait while the model is loading: its time must not include the loading."""
        if not self._loaded():
            self.number, self._again, self.phase = number, again, "before"
            return
        trial, name, cap_s = self.plan[number], secrets.token_hex(8), self.lab.study.time_cap_s
        condition, task = trial.condition, trial.task
        start = events.TrialStart(
            condition.id, task.id, trial.position, trial.practice, bool(task.goal), float(cap_s), again
        )
        wait_for(self.note(start, trial=name))
        self.session.stop()
        self.session.shelf.clear()
        self.session.grid = self.session.stage = self.session.refinement = None
        self.session.previews, self.session.picks = [], []
        backend = RecordingBackend(self.lab.backend, partial(self.note, trial=name), condition.speculate)
        self._studio = Studio(backend, self.lab.sketches, condition.full_solver)
        self.number, self.trial, self.phase, self._began = number, name, "trial", time.monotonic()
        self.trial_names.add(name)
        self._timer = threading.Timer(cap_s, self._time_out)
        self._timer.daemon = True
        self._timer.start()

    def end(self, outcome: str, final: str = "") -> None:
        """End the current trial; its questions come next."""
        if self._timer:
            self._timer.cancel()
        self.session.stop()
        self.phase, self.outcome, self.final = "rating", outcome, final

    def note(self, body: events.Body, at: float | None = None, trial: str | None = None) -> "Future[None]":
        """Queue an event for the log.

        Args:
            at: the browser's time in milliseconds, see `LogEvent`.
            trial: its name; the current trial if None.
        """
        assert self.who
        name = self.trial if trial is None else trial
        return self.lab.writer.post(
            events.LogEvent(self.who.participant, self.who.session, body, name, at, self.lab.study.digest)
        )

    def is_first_painting(self, trial: str, what: str, seed: int) -> bool:
        """Whether a picture of a trial was not painted before: another grid may have the same seeds."""
        name, grid, stage = "", self.session.grid, self.session.stage
        if trial == self.trial and what == "preview" and grid:
            name = next((tile.name for tile in grid.tiles if tile.seed == seed), "")
        elif trial == self.trial and stage and stage.tile.seed == seed:
            name = stage.name
        picture = (trial, what, seed, name)
        is_first = picture not in self._painted
        self._painted.add(picture)
        return is_first

    def tell(self, error: RequestError) -> None:
        """Show an error in the study's own words, which do not say how pictures are made."""
        labelled = isinstance(error, LabelledError)
        name = str(error) if labelled else "busy" if isinstance(error, Busy) else "problem"
        words = self.lab.study.labels[name]
        if self.who:
            self.note(events.ErrorShown(words))
        self.session.tell(words)

    def _loaded(self) -> bool:
        try:
            _ = self.lab.backend.facts
        except Busy:
            return False
        return True

    def _time_out(self) -> None:
        with self.session.lock:
            if self.session.listeners:  # for a tab that is away, the trial ends when it comes back
                self.catch_up()
        self.session.changed()

    def _picture_of(self, seed: int | None) -> str:
        """The name of the picture that the last trial ended with, if it is still on the shelf."""
        kind = "previews" if self.now.condition.mode == "full" else "finals"
        shots = [shot for entry in self.session.shelf.entries for shot in getattr(entry, kind)]
        return next((shot.picture for shot in shots if shot.job["seed"] == seed), "")


class Participations:
    """All participations in a study, each by its session."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._lock = threading.Lock()
        self._of: dict[str, Participation] = {}

    def of(self, session: Session) -> Participation:
        """Return a session's participation; new at its first call. Raises RequestError as `resume` does."""
        with self._lock:
            visit = self._of.setdefault(session.shelf.name, Participation(self.lab, session))
            visit.session = session
        visit.resume()
        return visit
