"""The actions of a participant in each phase of a study, and the reports of their browser.

Values come from the browser and may be anything.
"""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from app.jobs.job import LIMITS, MAX_PROMPT_LETTERS, RequestError
from app.page import handlers
from app.server.limits import LimitReached
from app.study.log import events
from app.study.log.enrolment import enrol
from app.study.log.pictures import keep_picture
from app.study.log.recording import RecordingBackend
from app.study.log.writer import NotRecorded, wait_for
from app.study.page.conditions import form_of
from app.study.page.participation import LabelledError, Participation
from app.study.plan import trials

log = logging.getLogger("app.study")

Values = Mapping[str, Any]
# Far more reports than a participant's browser ever sends.
MAX_REPORTS = 20_000
REPORTED = ("painted", "visibility_change")


def perform(visit: Participation, values: Values, address: str = "") -> None:
    """Perform the action values["do"]. Errors are shown on the page; late clicks are ignored.

    Args:
        address: that the click came from, see `address_of`.
    """
    with visit.session.lock:
        visit.address = address
        visit.catch_up()
        phase, act = ACTIONS.get(str(values.get("do")), ("", None))
        if act is None:
            raise RequestError(visit.lab.study.labels["again"])
        if phase != visit.phase or (phase in ("trial", "rating") and values.get("trial") != visit.trial):
            return
        if handlers.is_called_off(visit.session, values):
            return visit.session.tell(visit.lab.study.labels["called_off"], "info")
        try:
            act(visit, values)
        except RequestError as error:
            visit.tell(error)
    visit.session.changed()


def report(visit: Participation, values: Values) -> None:
    """Log an event of REPORTED that the browser reports. Raises RequestError for anything else."""
    kind, trial = values.get("kind"), values.get("trial")
    with visit.session.lock:
        if kind not in REPORTED:
            raise RequestError(f"A page may report {' and '.join(REPORTED)}, and nothing else.")
        if not isinstance(trial, str) or trial not in visit.trial_names:
            raise RequestError("There is no such trial.")
        if visit.reports >= MAX_REPORTS:
            raise RequestError("This page has reported too much.")
        try:
            body = events.body_of(kind, values.get("body"))
        except events.EventError as error:
            raise RequestError(f"This is not an event of the kind {kind}: {error}.") from error
        if not LIMITS["seed"].low <= getattr(body, "seed", 0) <= LIMITS["seed"].high:
            raise RequestError("There is no such seed.")
        if isinstance(body, events.Painted) and body.what not in ("preview", "final"):
            raise RequestError("A page may paint a preview or a final.")
        at = _milliseconds(values)
        visit.reports += 1
        if isinstance(body, events.Painted):
            if not visit.is_first_painting(trial, body.what, body.seed):
                return  # the page was loaded again, or is open twice
            if trial == visit.trial and visit.now.condition.mode == "full":
                body = events.Painted("final", body.seed)
        written = visit.note(body, at, trial)
    wait_for(written)


def _agree(visit: Participation, values: Values) -> None:
    if values.get("agree") is not True:
        return
    lab, free_text = visit.lab, values.get("free_text") is True
    try:
        if not visit.who:
            lab.enrolments.take(visit.address, 1)
    except LimitReached as error:
        log.warning("An address enrolled too many participants; --study-enrolments has the limit")
        raise LabelledError("crowded") from error
    try:
        visit.who = visit.who or enrol(lab.writer.store, lab.study, visit.session.secret, free_text)
    except Exception as error:  # any error of a database
        log.exception("No one can take part: the log can't be written")
        raise NotRecorded from error
    visit.plan = trials(lab.study, visit.who.place)
    visit.begin(0)


def _preview(visit: Participation, values: Values) -> None:
    prompt = visit.now.task.prompt or values.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise LabelledError("say")
    handlers.preview(visit.click(values, form_of(visit.now.condition, prompt, visit.lab.backend)))


def _reroll(visit: Participation, values: Values) -> None:
    grid = visit.session.grid
    if grid is None or grid.busy or values.get("grid") != grid.id:
        return
    kept = [] if values.get("all") else [tile.seed for tile in grid.tiles if tile.kept]
    _write(visit, events.Reroll(kept), values)
    handlers.reroll(visit.click(values))


def _keep(visit: Participation, values: Values) -> None:
    click = visit.click(values)
    tile = click.tile()
    _write(visit, events.Keep(tile.seed, not tile.kept), values)
    handlers.keep(click)


def _point_at(visit: Participation, values: Values) -> None:
    click = visit.click(values)
    _write(visit, events.Hover(click.tile().seed), values)
    handlers.point_at(click)


def _open(visit: Participation, values: Values) -> None:
    click, stage = visit.click(values), visit.session.stage
    seed = click.tile().seed
    if stage and stage.grid == values["grid"] and stage.tile.seed == seed and stage.state != "stopped":
        return
    _write(visit, events.Select(seed), values)
    if visit.now.condition.mode == "full":
        return handlers.show(click)
    _write(visit, events.Refine(seed), values)
    if visit.session.refinement:
        visit.session.refinement.cancel()  # in a trial one picture is waited for, not several
        visit.session.picks = []
    handlers.refine(click)
    handle, backend = visit.session.refinement, click.studio.backend
    # It was begun speculatively; from now on the participant waits for it.
    if handle and handle.job.kind == "speculative" and isinstance(backend, RecordingBackend):
        backend.record([handle], "refine")


def _cancel(visit: Participation, values: Values) -> None:
    _write(visit, events.Cancel(), values)
    handlers.cancel(visit.click(values))


def _satisfied(visit: Participation, values: Values) -> None:
    stage, study = visit.session.stage, visit.lab.study
    if stage is None or stage.state != "done" or values.get("stage") != stage.id:
        raise LabelledError("pick_first")
    assert visit.who
    keeps_words = bool(visit.now.task.goal) and visit.who.free_text
    _write(visit, events.Satisfied(stage.tile.seed, stage.job.prompt if keeps_words else ""), values)
    if study.keep_pictures and not visit.now.practice:
        try:
            picture = visit.session.shelf.path(stage.name).read_bytes()
            keep_picture(visit.lab.log, visit.who.participant, visit.trial, picture)
        except (OSError, RequestError):  # the trial has ended all the same, and the log has it
            log.exception("A picture could not be kept beside %s", visit.lab.log)
    visit.end("satisfied", stage.name)


def _give_up(visit: Participation, values: Values) -> None:
    if visit.seconds >= visit.lab.study.give_up_after_s:
        _write(visit, events.GiveUp(False), values)
        visit.end("gave_up")


def _rate(visit: Participation, values: Values) -> None:
    if visit.outcome == "satisfied":
        answers = _answers(values)
        for question in visit.lab.study.ratings:
            value = answers.get(question.id)
            if type(value) is not int or not 1 <= value <= question.points:
                raise LabelledError("rate_all")
        for question in visit.lab.study.ratings:
            _write(visit, events.RatingGiven(question.id, answers[question.id]), values)
    if visit.number + 1 < len(visit.plan):
        return visit.begin(visit.number + 1)
    visit.session.shelf.clear()
    if visit.closing_questions:
        visit.phase = "closing"
    else:
        _close(visit, values)


def _close(visit: Participation, values: Values) -> None:
    given, answers = _answers(values), {}
    for question in visit.closing_questions:
        answer = given.get(question.id)
        if not isinstance(answer, str) or not answer.strip():
            continue
        if not question.choices or answer in question.choices:
            answers[question.id] = answer.strip()[:MAX_PROMPT_LETTERS]
    _write(visit, events.SessionEnded(answers), values, trial="")
    visit.phase = "thanks"


ACTIONS: Mapping[str, tuple[str, Callable[[Participation, Values], None]]] = {
    "agree": ("consent", _agree),
    "preview": ("trial", _preview),
    "reroll": ("trial", _reroll),
    "keep": ("trial", _keep),
    "point_at": ("trial", _point_at),
    "refine": ("trial", _open),
    "cancel": ("trial", _cancel),
    "satisfied": ("trial", _satisfied),
    "give_up": ("trial", _give_up),
    "rate": ("rating", _rate),
    "close": ("closing", _close),
}
"""Name in the page's scripts → phase in which the action is allowed, and its function."""


def _write(visit: Participation, body: events.Body, values: Values, trial: str | None = None) -> None:
    """Log an event and return once it is on the disk. Raises NotRecorded."""
    wait_for(visit.note(body, _milliseconds(values), trial))


def _answers(values: Values) -> Values:
    answers = values.get("answers")
    return answers if isinstance(answers, Mapping) else {}


def _milliseconds(values: Values) -> float | None:
    """Return the browser's `performance.now()`, if it sent it. Raises RequestError for anything else."""
    at = values.get("at")
    if at is None:
        return None
    if type(at) not in (int, float) or not math.isfinite(at) or not 0 <= at < 1e12:
        raise RequestError("A time must be in milliseconds since the page was opened.")
    return float(at)
