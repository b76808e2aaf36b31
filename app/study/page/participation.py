"""One participant's way through a study: where they are, what they may do there, and what is noted of it.

What happens is written to the log before the page shows its consequence. Wishes and reports come from the
browser, so anything may be in them.
"""

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from app.backends.base import Backend
from app.jobs.job import LIMITS, MAX_PROMPT_LETTERS, Busy, RequestError
from app.page import handlers
from app.page.click import Click, Form, Studio
from app.page.session import Session, Tile
from app.page.sketches import Sketches
from app.study.log import events
from app.study.log.enrolment import Enrolled, enrol
from app.study.log.pictures import keep_picture
from app.study.log.recording import RecordingBackend
from app.study.log.resuming import reached
from app.study.log.writer import NotRecorded, Writer, wait_for
from app.study.page.conditions import form_of
from app.study.plan.definition import Study
from app.study.plan.order import Trial, trials

log = logging.getLogger("app.study")

Wish = Mapping[str, Any]
# Events that one browser may report; nobody comes near it by using the page.
MAX_REPORTS = 20_000
REPORTED = ("painted", "visibility_change")


@dataclass(frozen=True)
class Lab:
    """A study that runs. log: where its events are; the pictures that it keeps are beside."""

    study: Study
    writer: Writer
    log: str
    backend: Backend
    sketches: Sketches


class Told(RequestError):
    """What a participant is told by one of the study's own labels."""


class Participation:
    """A participant's place in the study, and all that leads on from there; under the session's lock.

    phase: consent, before (a trial, for pictures can't be made yet), trial, rating, closing or thanks. trial:
    the name of the one that is on, or was last.
    outcome: how it ended: satisfied, gave_up or timed_out. final: the picture it ended with, on the shelf.
    found: whether the log was asked where this tab was before.
    """

    def __init__(self, lab: Lab, session: Session) -> None:
        self.lab, self.session = lab, session
        self.phase = "consent"
        self.found = False
        self.who: Enrolled | None = None
        self.plan: list[Trial] = []
        self.number = -1
        self.trial, self.outcome, self.final = "", "", ""
        self._began, self._again = 0.0, False
        self._names: set[str] = set()
        self._reports = 0
        self._timer: threading.Timer | None = None
        self._recording: RecordingBackend | None = None
        self._studio: Studio | None = None

    @property
    def now(self) -> Trial:
        """The trial that is on, or was last."""
        return self.plan[self.number]

    @property
    def seconds(self) -> float:
        """How long the trial has been on."""
        return time.monotonic() - self._began

    def find(self) -> None:
        """Once, before anything else: go on where the log says that this tab was when the app ended.

        Raises RequestError where the log can't be read, and then the next time it is tried again.
        """
        with self.session.lock:
            if self.found:
                return
            try:
                at = reached(self.lab.writer.store, self.lab.study, self.session.secret)
            except Exception as error:  # whatever a database raises
                log.exception("The log can't be read")
                raise RequestError(self.lab.study.labels["problem"]) from error
            if at:
                self.who, self.plan = at.who, trials(self.lab.study, at.who.place)
                if at.phase == "trial":
                    wait_for(self._note(events.Interrupted(), trial=at.trial))
                    self.session.tell(self.lab.study.labels["anew"])
                if at.phase in ("before", "trial"):
                    self._begin(at.number, again=at.phase == "trial")
                else:
                    self.phase, self.number = at.phase, at.number
                    self.trial, self.outcome = at.trial, at.outcome
                    self.final = self._picture_of(at.seed)
            self.found = True

    def do(self, wish: Wish) -> None:
        """What somebody clicked. What is wrong with it is told on the page; what comes too late is left."""
        with self.session.lock:
            self.catch_up()
            phase, act = _ACTIONS.get(str(wish.get("do")), ("", None))
            if act is None:
                raise RequestError(self.lab.study.labels["again"])
            if phase != self.phase or (self.phase in ("trial", "rating") and wish.get("trial") != self.trial):
                return
            if handlers.is_called_off(self.session, wish):
                return self.session.tell(self.lab.study.labels["called_off"], "info")
            try:
                act(self, wish)
            except RequestError as error:
                self._tell(error)
        self.session.changed()

    def report(self, told: Mapping[str, Any]) -> None:
        """What the browser tells of itself: an event of REPORTED. Raises RequestError, in words."""
        kind, trial = told.get("kind"), told.get("trial")
        with self.session.lock:
            if kind not in REPORTED:
                raise RequestError(f"A page may report {', '.join(REPORTED)}, and nothing else.")
            if not isinstance(trial, str) or trial not in self._names:
                raise RequestError("There is no such trial.")
            if self._reports >= MAX_REPORTS:
                raise RequestError("This page has reported too much.")
            try:
                body = events.body_of(kind, told.get("body"))
            except events.EventError as error:
                raise RequestError(f"This is no event of the kind {kind}: {error}.") from error
            if not LIMITS["seed"].low <= getattr(body, "seed", 0) <= LIMITS["seed"].high:
                raise RequestError("There is no such seed.")
            if isinstance(body, events.Painted):
                if body.what not in ("preview", "final"):
                    raise RequestError("A preview is painted, or a final.")
                if trial == self.trial and self.now.condition.mode == "full":
                    body = events.Painted("final", body.seed)
            at = _milliseconds(told.get("at"))
            self._reports += 1
            written = self._note(body, at, str(trial))
        wait_for(written)

    def catch_up(self) -> None:
        """Begin the trial that waits for the model; end the one whose time is over."""
        if self.phase == "before":
            with suppress(NotRecorded):  # the next time, then
                self._begin(self.number, self._again)
        if self.phase == "trial" and self.seconds >= self.lab.study.time_cap_s:
            self._note(events.GiveUp(True))
            self._end("timed_out")

    def _click(self, wish: Wish, form: Form | None = None) -> Click:
        """Return the ordinary page's click for one in a trial."""
        assert self._studio
        form = form or Form(full_steps=self.now.condition.full_steps)
        return Click(self._studio, self.session, wish, form)

    # ---- what the pages offer

    def _agree(self, wish: Wish) -> None:
        if wish.get("agree") is not True:
            return
        free_text = wish.get("free_text") is True
        try:
            self.who = self.who or enrol(
                self.lab.writer.store, self.lab.study, self.session.secret, free_text
            )
        except Exception as error:  # whatever a database raises
            log.exception("Nobody can take part: the log can't be written")
            raise NotRecorded from error
        self.plan = trials(self.lab.study, self.who.place)
        self._begin(0)

    def _preview(self, wish: Wish) -> None:
        prompt = self.now.task.prompt or wish.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            raise Told("say")
        handlers.preview(self._click(wish, form_of(self.now.condition, prompt, self.lab.backend)))

    def _reroll(self, wish: Wish) -> None:
        grid = self.session.grid
        if grid is None or grid.busy or wish.get("grid") != grid.id:
            return
        kept = [] if wish.get("all") else [tile.seed for tile in grid.tiles if tile.kept]
        self._write(events.Reroll(kept), wish)
        handlers.reroll(self._click(wish))

    def _keep(self, wish: Wish) -> None:
        tile = self._tile(wish)
        self._write(events.Keep(tile.seed, not tile.kept), wish)
        handlers.keep(self._click(wish))

    def _look(self, wish: Wish) -> None:
        self._write(events.Hover(self._tile(wish).seed), wish)
        handlers.point_at(self._click(wish))

    def _open(self, wish: Wish) -> None:
        tile, stage = self._tile(wish), self.session.stage
        if stage and stage.grid == wish["grid"] and stage.tile.seed == tile.seed and stage.state != "stopped":
            return
        self._write(events.Select(tile.seed), wish)
        if self.now.condition.mode == "full":
            return handlers.show(self._click(wish))
        self._write(events.Refine(tile.seed), wish)
        assert self._recording
        handlers.refine(self._click(wish))
        handle = self.session.refinement
        if handle and handle.job.kind == "speculative":  # a guess, which somebody waits for from now on
            self._recording.follow([handle], "refine")

    def _cancel(self, wish: Wish) -> None:
        self._write(events.Cancel(), wish)
        handlers.cancel(self._click(wish))

    def _satisfied(self, wish: Wish) -> None:
        stage = self.session.stage
        if stage is None or stage.state != "done" or wish.get("stage") != stage.id:
            raise Told("pick_first")
        assert self.who
        keeps_words = bool(self.now.task.goal) and self.who.free_text
        self._write(events.Satisfied(stage.tile.seed, stage.job.prompt if keeps_words else ""), wish)
        if self.lab.study.keep_pictures and not self.now.practice:
            try:
                picture = self.session.shelf.path(stage.name).read_bytes()
                keep_picture(self.lab.log, self.who.participant, self.trial, picture)
            except (OSError, RequestError):  # the trial has ended all the same, and the log has it
                log.exception("A picture could not be kept beside %s", self.lab.log)
        self._end("satisfied", stage.name)

    def _give_up(self, wish: Wish) -> None:
        if self.seconds >= self.lab.study.give_up_after_s:
            self._write(events.GiveUp(False), wish)
            self._end("gave_up")

    def _rate(self, wish: Wish) -> None:
        if self.outcome == "satisfied":
            answers = wish.get("answers")
            answers = answers if isinstance(answers, Mapping) else {}
            for question in self.lab.study.ratings:
                value = answers.get(question.id)
                if type(value) is not int or not 1 <= value <= question.points:
                    raise Told("rate_all")
            for question in self.lab.study.ratings:
                self._write(events.RatingGiven(question.id, answers[question.id]), wish)
        if self.number + 1 < len(self.plan):
            return self._begin(self.number + 1)
        self.session.shelf.clear()
        if questions_of(self):
            self.phase = "closing"
        else:
            self._close(wish)

    def _close(self, wish: Wish) -> None:
        given = wish.get("answers")
        given = given if isinstance(given, Mapping) else {}
        answers = {}
        for question in questions_of(self):
            answer = given.get(question.id)
            if not isinstance(answer, str) or not answer.strip():
                continue
            if not question.choices or answer in question.choices:
                answers[question.id] = answer.strip()[:MAX_PROMPT_LETTERS]
        self._write(events.SessionEnded(answers), wish, trial="")
        self.phase = "thanks"

    # ---- trials begin and end

    def _begin(self, number: int, again: bool = False) -> None:
        """Begin a trial, or, while the model is loading, wait: its time would be that of loading."""
        if not self._loaded():
            self.number, self._again, self.phase = number, again, "before"
            return
        trial, name, cap_s = self.plan[number], secrets.token_hex(8), self.lab.study.time_cap_s
        condition, task = trial.condition, trial.task
        start = events.TrialStart(
            condition.id, task.id, trial.position, trial.practice, bool(task.goal), float(cap_s), again
        )
        wait_for(self._note(start, trial=name))
        self.session.stop()
        self.session.shelf.clear()
        self.session.grid = self.session.stage = self.session.refinement = None
        self.session.previews = []
        note = partial(self._note, trial=name)
        self._recording = RecordingBackend(self.lab.backend, note, condition.speculate)
        self._studio = Studio(self._recording, self.lab.sketches, condition.full_solver)
        self.number, self.trial, self.phase, self._began = number, name, "trial", time.monotonic()
        self._names.add(name)
        self._timer = threading.Timer(cap_s, self._late)
        self._timer.daemon = True
        self._timer.start()

    def _loaded(self) -> bool:
        try:
            _ = self.lab.backend.facts
        except Busy:
            return False
        return True

    def _late(self) -> None:
        with self.session.lock:
            if self.session.listeners:  # whoever has left finds it over when they come back
                self.catch_up()
        self.session.changed()

    def _end(self, outcome: str, final: str = "") -> None:
        if self._timer:
            self._timer.cancel()
        self.session.stop()
        self.phase, self.outcome, self.final = "rating", outcome, final

    def _picture_of(self, seed: int | None) -> str:
        """The name of the picture that the last trial ended with, where it is still on the shelf."""
        kind = "previews" if self.now.condition.mode == "full" else "finals"
        shots = [shot for entry in self.session.shelf.entries for shot in getattr(entry, kind)]
        return next((shot.picture for shot in shots if shot.job["seed"] == seed), "")

    # ---- what is noted and told

    def _note(self, body: events.Body, at: float | None = None, trial: str | None = None) -> "Future[None]":
        assert self.who
        return self.lab.writer.post(
            events.LogEvent(
                self.who.participant,
                self.who.session,
                body,
                self.trial if trial is None else trial,
                at,
                self.lab.study.digest,
            )
        )

    def _write(self, body: events.Body, wish: Wish, trial: str | None = None) -> None:
        wait_for(self._note(body, _milliseconds(wish.get("at")), trial))

    def _tell(self, error: RequestError) -> None:
        """Say what went wrong in the study's own words, which tell nothing of how pictures are made."""
        name = str(error) if isinstance(error, Told) else "busy" if isinstance(error, Busy) else "problem"
        words = self.lab.study.labels[name]
        if self.who:
            self._note(events.ErrorShown(words))
        self.session.tell(words)

    def _tile(self, wish: Wish) -> Tile:
        grid = self.session.grid
        tile = grid.find(wish.get("seed")) if grid and wish.get("grid") == grid.id else None
        if tile is None or not tile.name:
            raise Told("problem")
        return tile


_ACTIONS: Mapping[str, tuple[str, Callable[[Participation, Wish], None]]] = {
    "agree": ("consent", Participation._agree),
    "preview": ("trial", Participation._preview),
    "reroll": ("trial", Participation._reroll),
    "keep": ("trial", Participation._keep),
    "point_at": ("trial", Participation._look),
    "refine": ("trial", Participation._open),
    "cancel": ("trial", Participation._cancel),
    "satisfied": ("trial", Participation._satisfied),
    "give_up": ("trial", Participation._give_up),
    "rate": ("rating", Participation._rate),
    "close": ("closing", Participation._close),
}


class Participations:
    """All visits of a study, by the session that each happens in."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._lock = threading.Lock()
        self._visits: dict[str, Participation] = {}

    def of(self, session: Session) -> Participation:
        """The visit of a session, which begins with its first question. Raises RequestError as `find`."""
        with self._lock:
            visit = self._visits.setdefault(session.shelf.name, Participation(self.lab, session))
            visit.session = session
        visit.find()
        return visit


def questions_of(visit: Participation) -> list[Any]:
    """The closing questions for this participant: for free text only where they agreed that it is kept."""
    keeps = visit.who is not None and visit.who.free_text
    return [question for question in visit.lab.study.closing if question.choices or keeps]


def _milliseconds(value: object) -> float | None:
    """The browser's `performance.now()`. Raises RequestError where it is something else."""
    if value is None:
        return None
    if type(value) not in (int, float) or not math.isfinite(float(value)) or not 0 <= float(value) < 1e12:  # type: ignore[arg-type]
        raise RequestError("A time must be in milliseconds since the page was opened.")
    return float(value)  # type: ignore[arg-type]
