"""From events to one row per trial: how long it took, how it ended, and what the time went into."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pandas as pd

from app.study.log.events import (
    Body,
    ComputeEnd,
    ComputeStart,
    ErrorShown,
    GiveUp,
    Hover,
    Interrupted,
    LogEvent,
    RatingGiven,
    Refine,
    Satisfied,
    Select,
    SessionBegan,
    Submit,
    TrialStart,
    VisibilityChange,
)

COLUMNS = (
    "participant", "session", "trial", "simulated", "finished", "place", "position", "condition", "task",
    "practice", "outcome", "seconds", "cap_s", "tries", "refinements", "queue_s", "compute_s", "think_s",
    "hidden_s", "errors", "again", "looked", "picked",
)  # fmt: skip


@dataclass
class _Clock:
    """Seconds since the trial began: by the clock that never jumps where the process is the same."""

    first: LogEvent

    def at(self, event: LogEvent) -> float:
        if event.process and event.process == self.first.process:
            return event.monotonic - self.first.monotonic
        return event.utc - self.first.utc


@dataclass
class _Spans:
    """Spans of time; `total` counts once what overlaps."""

    spans: list[tuple[float, float]] = field(default_factory=list)

    def total(self, end: float) -> float:
        seconds, reached = 0.0, 0.0
        for begin, finish in sorted(self.spans):
            begin, finish = max(begin, reached), min(finish, end)
            seconds += max(0.0, finish - begin)
            reached = max(reached, finish)
        return seconds


def trial_table(events: Iterable[LogEvent]) -> pd.DataFrame:
    """One row per trial that was begun, with COLUMNS and a column `rating_…` for each question.

    outcome: satisfied, gave_up, timed_out, interrupted by the app's end, or left where the log has no end of
    it. again: it was on before and was interrupted. seconds: from the trial's page to its end. queue_s and
    compute_s: while somebody waited for a picture, before and after work on it began; think_s: all other
    time. tries: how often pictures were asked for; refinements: of these, finals. looked: at how many
    pictures the pointer rested; picked: how often one was opened.
    """
    by_trial: dict[tuple[str, str], list[LogEvent]] = {}
    sessions: dict[str, SessionBegan] = {}
    finished: set[str] = set()
    for event in events:
        if isinstance(event.body, SessionBegan):
            sessions[event.session] = event.body
        if event.kind == "session_end":
            finished.add(event.session)
        if event.trial:
            by_trial.setdefault((event.session, event.trial), []).append(event)
    rows = []
    for (session, _), happened in by_trial.items():
        starts = [event for event in happened if isinstance(event.body, TrialStart)]
        if starts and session in sessions:
            about = {
                "place": sessions[session].place,
                "simulated": sessions[session].simulated,
                "finished": session in finished,
            }
            rows.append(_row(starts[0], happened) | about)
    ratings = sorted({name for row in rows for name in row if name.startswith("rating_")})
    table = pd.DataFrame(rows, columns=[*COLUMNS, *ratings])
    return table.sort_values(["session", "position"]).reset_index(drop=True)


def _row(start: LogEvent, happened: Sequence[LogEvent]) -> dict[str, object]:
    body, clock = start.body, _Clock(start)
    assert isinstance(body, TrialStart)
    interrupted = [event for event in happened if isinstance(event.body, Interrupted)]
    happened = [event for event in happened if event not in interrupted]
    ends = [event for event in happened if isinstance(event.body, Satisfied | GiveUp)]
    end = ends[0] if ends else max(happened, key=clock.at)
    seconds = max(clock.at(end), 0.0)
    queue, compute = _waiting([each for each in happened if clock.at(each) <= seconds], clock, seconds)
    of: dict[type[Body], int] = {}
    for event in happened:
        of[type(event.body)] = of.get(type(event.body), 0) + 1
    waited = queue.total(seconds)
    # What one request computes while another still queues is counted as computing alone.
    computed = compute.total(seconds)
    both = _Spans([*queue.spans, *compute.spans]).total(seconds)
    row: dict[str, object] = {
        "participant": start.participant,
        "session": start.session,
        "trial": start.trial,
        "position": body.position,
        "condition": body.condition,
        "task": body.task,
        "practice": body.practice,
        "outcome": _outcome(ends or interrupted),
        "seconds": seconds,
        "cap_s": body.time_cap_s,
        "tries": sum(_is_preview(each) for each in happened),
        "refinements": of.get(Refine, 0),
        "queue_s": min(waited, both - computed),
        "compute_s": computed,
        "think_s": seconds - both,
        "hidden_s": _hidden(happened, clock, seconds),
        "errors": of.get(ErrorShown, 0),
        "again": body.again,
        "looked": len({event.body.seed for event in happened if isinstance(event.body, Hover)}),
        "picked": of.get(Select, 0),
    }
    for event in happened:
        if isinstance(event.body, RatingGiven):
            row[f"rating_{event.body.question}"] = event.body.value
    return row


def _is_preview(event: LogEvent) -> bool:
    return isinstance(event.body, Submit) and event.body.purpose == "preview"


def _outcome(ends: Sequence[LogEvent]) -> str:
    if not ends:
        return "left"
    body = ends[0].body
    if isinstance(body, Interrupted):
        return "interrupted"
    if isinstance(body, GiveUp):
        return "timed_out" if body.timed_out else "gave_up"
    return "satisfied"


def _waiting(happened: Sequence[LogEvent], clock: _Clock, end: float) -> tuple[_Spans, _Spans]:
    """When requests that somebody waited for were queued, and computed; guesses are waited for by nobody."""
    asked: dict[str, float] = {}
    begun: dict[str, float] = {}
    queue, compute = _Spans(), _Spans()
    for event in happened:
        at, body = clock.at(event), event.body
        if isinstance(body, Submit) and body.purpose != "speculative":
            asked[body.request] = at
        elif isinstance(body, ComputeStart) and body.request in asked:
            begun[body.request] = at
            queue.spans.append((asked[body.request], at))
        elif isinstance(body, ComputeEnd) and body.request in asked:
            compute.spans.append((begun.pop(body.request, asked[body.request]), at))
            asked.pop(body.request)
    compute.spans += [(at, end) for at in begun.values()]
    queue.spans += [(at, end) for request, at in asked.items() if request not in begun]
    return queue, compute


def _hidden(happened: Sequence[LogEvent], clock: _Clock, end: float) -> float:
    hidden, since = 0.0, None
    for event in happened:
        if isinstance(event.body, VisibilityChange):
            if event.body.visible and since is not None:
                hidden += clock.at(event) - since
                since = None
            elif not event.body.visible and since is None:
                since = clock.at(event)
    return hidden + (max(0.0, end - since) if since is not None else 0.0)
