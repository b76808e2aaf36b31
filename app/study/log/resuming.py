"""Read from the log how far a participant had come when the app ended."""

from dataclasses import dataclass

from app.study.log.enrolment import Enrolled
from app.study.log.events import GiveUp, LogEvent, RatingGiven, Satisfied, SessionBegan, TrialStart
from app.study.log.reading import read_lines
from app.study.log.store import Store
from app.study.log.withdrawal import code_of, participant_of
from app.study.plan import Study, trials


@dataclass(frozen=True)
class Progress:
    """How far a participant is.

    Attributes:
        phase: before (a trial that has not begun), trial (it was interrupted), rating, closing or thanks.
        number: of the trial in the participant's plan.
        trial: its name in the log.
        outcome, seed: of a trial that has ended.
    """

    who: Enrolled
    phase: str
    number: int = 0
    trial: str = ""
    outcome: str = ""
    seed: int | None = None


def read_progress(store: Store, study: Study, secret: str) -> Progress | None:
    """Return the progress of the tab with this secret; None if it has not agreed to take part."""
    code = code_of(secret)
    known = [
        each for each in read_lines(store.lines(participant_of(code))).events if each.study == study.digest
    ]
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
        return Progress(who, "thanks", len(positions) - 1)
    if not starts:
        return Progress(who, "before")
    trial, start = starts[-1]
    number = positions.index(start.position)
    within = [event for event in mine if event.trial == trial]
    ends = [event.body for event in within if isinstance(event.body, Satisfied | GiveUp)]
    if not ends:
        return Progress(who, "trial", number, trial)
    end = ends[0]
    if isinstance(end, GiveUp):
        return Progress(who, "rating", number, trial, "timed_out" if end.timed_out else "gave_up")
    if not _is_rated(within, study):
        return Progress(who, "rating", number, trial, "satisfied", end.seed)
    if number + 1 < len(positions):
        return Progress(who, "before", number + 1)
    return Progress(who, "closing", number, trial, "satisfied", end.seed)


def _is_rated(within: list[LogEvent], study: Study) -> bool:
    answered = {event.body.question for event in within if isinstance(event.body, RatingGiven)}
    return answered >= {question.id for question in study.ratings}
