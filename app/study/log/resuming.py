"""How far a participant had come when the app ended, read from the log: a tab finds its place again."""

from dataclasses import dataclass

from app.study.log.enrolment import Enrolled
from app.study.log.events import (
    GiveUp,
    LogEvent,
    RatingGiven,
    Satisfied,
    SessionBegan,
    TrialStart,
)
from app.study.log.reading import clean
from app.study.log.store import Store
from app.study.log.withdrawal import code_of, participant_of
from app.study.plan.definition import Study
from app.study.plan.order import trials


@dataclass(frozen=True)
class Reached:
    """How far somebody is. number: of the trial in their plan; trial: its name in the log; phase: before (it
    has not begun), trial (it was on), rating, closing or thanks. outcome and seed: of a trial that ended."""

    who: Enrolled
    phase: str
    number: int = 0
    trial: str = ""
    outcome: str = ""
    seed: int | None = None


def reached(store: Store, study: Study, secret: str) -> Reached | None:
    """How far whoever has this secret has come in this study, or None where they have not agreed to it."""
    code = code_of(secret)
    known = [each for each in clean(store.lines(participant_of(code))).events if each.study == study.digest]
    began = [event for event in known if isinstance(event.body, SessionBegan)]
    if not began:
        return None
    session, agreed = began[-1].session, began[-1].body
    assert isinstance(agreed, SessionBegan)
    who = Enrolled(participant_of(code), session, agreed.place, code, agreed.free_text)
    mine = [event for event in known if event.session == session]
    positions = [each.position for each in trials(study, who.place)]
    starts = [(event.trial, event.body) for event in mine if isinstance(event.body, TrialStart)]
    if any(event.kind == "session_end" for event in mine):
        return Reached(who, "thanks", len(positions) - 1)
    if not starts:
        return Reached(who, "before")
    trial, start = starts[-1]
    number = positions.index(start.position)
    within = [event for event in mine if event.trial == trial]
    ends = [event.body for event in within if isinstance(event.body, Satisfied | GiveUp)]
    if not ends:
        return Reached(who, "trial", number, trial)
    end = ends[0]
    if isinstance(end, GiveUp):
        return Reached(who, "rating", number, trial, "timed_out" if end.timed_out else "gave_up")
    if not _is_rated(within, study):
        return Reached(who, "rating", number, trial, "satisfied", end.seed)
    if number + 1 < len(positions):
        return Reached(who, "before", number + 1)
    return Reached(who, "closing", number, trial, "satisfied", end.seed)


def _is_rated(within: list[LogEvent], study: Study) -> bool:
    answered = {event.body.question for event in within if isinstance(event.body, RatingGiven)}
    return answered >= {question.id for question in study.ratings}
