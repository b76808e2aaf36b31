"""Turn events into one row per trial: how long it took, how it ended, and what the time was spent on."""

from collections import Counter
from collections.abc import Iterable, Sequence

import pandas as pd

from app.study.log import events
from app.study.log.events import Body, LogEvent

COLUMNS = (
    "participant", "session", "trial", "simulated", "finished", "place", "position", "condition", "task",
    "practice", "outcome", "seconds", "cap_s", "tries", "refinements", "queue_s", "compute_s", "think_s",
    "hidden_s", "errors", "again", "looked", "picked",
)  # fmt: skip
Moment = tuple[float, Body]
"""An event of a trial: seconds since its start, and what happened."""
Span = tuple[float, float]


def trial_table(logged: Iterable[LogEvent]) -> pd.DataFrame:
    """Return one row per trial that was begun, with COLUMNS and `rating_…` for each question.

    Columns:
        outcome: satisfied, gave_up, timed_out, interrupted (by the app's end), or left (the log has no end).
        again: the trial was interrupted before, and started again.
        seconds: from the trial's page to its end.
        queue_s, compute_s: while the participant waited for pictures, before and after computing began.
        think_s: all other time.
        tries: how often previews were requested.
        refinements: how often a final was requested.
        looked: pictures that the pointer rested on.
        picked: how often a picture was opened.
    """
    by_trial: dict[tuple[str, str], list[LogEvent]] = {}
    sessions: dict[str, events.SessionBegan] = {}
    finished: set[str] = set()
    for event in logged:
        if isinstance(event.body, events.SessionBegan):
            sessions[event.session] = event.body
        if event.kind == "session_end":
            finished.add(event.session)
        if event.trial:
            by_trial.setdefault((event.session, event.trial), []).append(event)
    rows = []
    for (session, _), happened in by_trial.items():
        start = next((event for event in happened if isinstance(event.body, events.TrialStart)), None)
        if start and session in sessions:
            began = sessions[session]
            about = {"place": began.place, "simulated": began.simulated, "finished": session in finished}
            rows.append(_row(start, happened) | about)
    ratings = sorted({name for row in rows for name in row if name.startswith("rating_")})
    table = pd.DataFrame(rows, columns=[*COLUMNS, *ratings])
    return table.sort_values(["session", "position"]).reset_index(drop=True)


def _row(start: LogEvent, happened: Sequence[LogEvent]) -> dict[str, object]:
    trial = start.body
    assert isinstance(trial, events.TrialStart)
    moments = [
        (_seconds(start, each), each.body) for each in happened if each.kind != events.Interrupted.kind
    ]
    bodies = [body for _, body in moments]
    ends = [(at, body) for at, body in moments if isinstance(body, events.Satisfied | events.GiveUp)]
    if ends:
        at, end = ends[0]
        timed_out = isinstance(end, events.GiveUp) and end.timed_out
        outcome = (
            "satisfied" if isinstance(end, events.Satisfied) else "timed_out" if timed_out else "gave_up"
        )
    else:
        at = max(at for at, _ in moments)
        outcome = "left" if len(moments) == len(happened) else "interrupted"
    seconds = max(at, 0.0)
    queue, compute = _waiting([each for each in moments if each[0] <= seconds], seconds)
    # What one request computes while another still queues is counted as computing alone.
    computed, both = _covered(compute, seconds), _covered(queue + compute, seconds)
    counts = Counter(map(type, bodies))
    row: dict[str, object] = {
        "participant": start.participant,
        "session": start.session,
        "trial": start.trial,
        "position": trial.position,
        "condition": trial.condition,
        "task": trial.task,
        "practice": trial.practice,
        "outcome": outcome,
        "seconds": seconds,
        "cap_s": trial.time_cap_s,
        "tries": sum(isinstance(each, events.Submit) and each.purpose == "preview" for each in bodies),
        "refinements": counts[events.Refine],
        "queue_s": min(_covered(queue, seconds), both - computed),
        "compute_s": computed,
        "think_s": seconds - both,
        "hidden_s": _hidden(moments, seconds),
        "errors": counts[events.ErrorShown],
        "again": trial.again,
        "looked": len({each.seed for each in bodies if isinstance(each, events.Hover)}),
        "picked": counts[events.Select],
    }
    return row | {
        f"rating_{each.question}": each.value for each in bodies if isinstance(each, events.RatingGiven)
    }


def _seconds(start: LogEvent, event: LogEvent) -> float:
    """Seconds from one event to another; within one process, by the clock that never jumps."""
    if event.process and event.process == start.process:
        return event.monotonic - start.monotonic
    return event.utc - start.utc


def _waiting(moments: Sequence[Moment], end: float) -> tuple[list[Span], list[Span]]:
    """The spans in which requests were queued, and computed; speculative ones do not count."""
    asked: dict[str, float] = {}
    begun: dict[str, float] = {}
    queue: list[Span] = []
    compute: list[Span] = []
    for at, body in moments:
        if isinstance(body, events.Submit) and body.purpose != "speculative":
            asked[body.request] = at
        elif isinstance(body, events.ComputeStart) and body.request in asked:
            begun[body.request] = at
            queue.append((asked[body.request], at))
        elif isinstance(body, events.ComputeEnd) and body.request in asked:
            compute.append((begun.pop(body.request, asked[body.request]), at))
            asked.pop(body.request)
    compute += [(at, end) for at in begun.values()]
    queue += [(at, end) for request, at in asked.items() if request not in begun]
    return queue, compute


def _covered(spans: Sequence[Span], end: float) -> float:
    """The seconds until `end` that lie within any of the spans."""
    seconds = reached = 0.0
    for begin, finish in sorted(spans):
        begin, finish = max(begin, reached), min(finish, end)
        seconds += max(0.0, finish - begin)
        reached = max(reached, finish)
    return seconds


def _hidden(moments: Sequence[Moment], end: float) -> float:
    """The seconds during which the page was hidden."""
    hidden, since = 0.0, None
    for at, body in moments:
        if isinstance(body, events.VisibilityChange):
            if body.visible and since is not None:
                hidden += at - since
                since = None
            elif not body.visible and since is None:
                since = at
    return hidden + (max(0.0, end - since) if since is not None else 0.0)
