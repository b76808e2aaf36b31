"""Give a new participant a place in the design and a withdrawal code."""

import secrets
import time
from dataclasses import dataclass

from app.study.log.events import LogEvent, SessionBegan, read_events
from app.study.log.store import Store
from app.study.log.withdrawal import code_of, participant_of
from app.study.plan.definition import Study
from app.study.plan.order import next_place, order_of

DROPPED_OUT_S = 3 * 3600.0
"""Participants who have not finished by then have dropped out; their places are given to others."""


@dataclass(frozen=True)
class Enrolled:
    """A participant.

    Attributes:
        participant: the hash of `code`; only this is in the log.
        place: see `app.study.plan.order`.
    """

    participant: str
    session: str
    place: int
    code: str
    free_text: bool


def enrol(
    store: Store,
    study: Study,
    secret: str | None = None,
    free_text: bool = False,
    simulated: bool = False,
    now: float | None = None,
) -> Enrolled:
    """Give the next participant a place, and log that they agreed to take part.

    Args:
        secret: identifies them after a restart, such as their tab's; a random one if None.
        free_text: they agreed that their own words are kept.
        simulated: a program takes part.
        now: UTC in seconds; the present if None.
    """
    now = time.time() if now is None else now
    code, session = code_of(secret or secrets.token_hex(32)), secrets.token_hex(8)
    participant = participant_of(code)

    def choose(lines: list[str]) -> LogEvent:
        known = [event for event in read_events(lines) if event.study == study.digest]
        finished = {event.session for event in known if event.kind == "session_end"}
        taken = [
            event.body.place
            for event in known
            if isinstance(event.body, SessionBegan)
            and (event.session in finished or event.utc > now - DROPPED_OUT_S)
        ]
        place = next_place(study, taken)
        order = [each.id for each in order_of(study, place)]
        body = SessionBegan(place, order, study.digest, free_text, simulated)
        return LogEvent(participant, session, body, study=study.digest, utc=now)

    body = store.join(choose).body
    assert isinstance(body, SessionBegan)
    return Enrolled(participant, session, body.place, code, body.free_text)
