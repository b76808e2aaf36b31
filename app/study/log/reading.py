"""Read logs of every form; skip and count what is wrong with them."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet

from app.study.log.events import VERSION, EventError, LogEvent, TooNew, read_event
from app.study.log.store import StoreError, open_store

# A smaller jump of a server's clock is not counted.
JUMP_S = 1.0
_SCHEMA = pyarrow.schema(
    [(name, pyarrow.string()) for name in ("id", "kind", "study", "participant", "session", "trial")]
    + [("utc", pyarrow.float64()), ("line", pyarrow.string())]
)


@dataclass(frozen=True)
class Faults:
    """How often something was wrong with a log.

    Attributes:
        torn: last lines that were cut off.
        unreadable: other lines that are not events.
        newer: events by a newer version of this program, which are skipped.
        migrated: events by an older version, which were converted.
        duplicates: events that were there twice.
        jumps: how often a server's clock was changed; durations come from a clock that never jumps.
    """

    torn: int = 0
    unreadable: int = 0
    newer: int = 0
    migrated: int = 0
    duplicates: int = 0
    jumps: int = 0


@dataclass(frozen=True)
class Log:
    """The events of a log, each once, in the order of writing."""

    events: tuple[LogEvent, ...]
    faults: Faults


def read_log(source: str) -> Log:
    """Read an SQLite file, a PostgreSQL URL, JSON lines, or parquet (a file, or a folder of them).

    Raises StoreError if there is no log, or it can't be read.
    """
    path = Path(source)
    if "://" not in source and not path.exists():
        raise StoreError(f"there is no log {source}.")
    try:
        if path.suffix == ".jsonl":
            text = path.read_text(encoding="utf-8", errors="replace")
            lines = text.split("\n")
            return read_lines(lines if lines[-1] else lines[:-1], torn=bool(lines[-1]))
        if path.is_dir() or path.suffix == ".parquet":
            files = sorted(path.glob("**/*.parquet")) if path.is_dir() else [path]
            return read_lines(line for file in files for line in _parquet_lines(file))
    except OSError as error:
        raise StoreError(f"the log {source} can't be read ({error.strerror or error}).") from error
    store = open_store(source)
    try:
        return read_lines(store.lines())
    finally:
        store.close()


def read_lines(lines: Iterable[str], torn: bool = False) -> Log:
    """Read the log in these lines.

    Args:
        torn: the last line has no end, so it may be half an event.
    """
    events: dict[str, LogEvent] = {}
    counts = dict.fromkeys(asdict(Faults()), 0)
    lines = list(lines)
    for number, line in enumerate(lines, 1):
        try:
            event, version = read_event(line)
        except TooNew:
            counts["newer"] += 1
            continue
        except EventError:
            counts["torn" if torn and number == len(lines) else "unreadable"] += 1
            continue
        counts["migrated"] += version < VERSION
        counts["duplicates"] += event.id in events
        events.setdefault(event.id, event)
    counts["jumps"] = _jumps(events.values())
    return Log(tuple(events.values()), Faults(**counts))


def write_jsonl(events: Iterable[LogEvent], path: Path) -> int:
    """Write events as JSON lines; return how many."""
    lines = [event.write() + "\n" for event in events]
    path.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def write_parquet(events: Iterable[LogEvent], path: Path) -> int:
    """Write one row per event: columns of its header, and the whole event as JSON in `line`."""
    rows = [
        {name: event.write() if name == "line" else getattr(event, name) for name in _SCHEMA.names}
        for event in events
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=_SCHEMA), path)
    return len(rows)


def _parquet_lines(file: Path) -> Iterator[str]:
    try:
        yield from parquet.read_table(file, columns=["line"])["line"].to_pylist()
    except (pyarrow.ArrowInvalid, KeyError) as error:
        raise StoreError(f"{file} is not a parquet file of events ({str(error).splitlines()[0]}).") from error


def _jumps(events: Iterable[LogEvent]) -> int:
    clocks: dict[str, list[tuple[float, float]]] = {}
    for event in events:
        if event.process:
            clocks.setdefault(event.process, []).append((event.monotonic, event.utc))
    return sum(
        abs((utc - utc_before) - (monotonic - before)) > JUMP_S
        for times in clocks.values()
        for (before, utc_before), (monotonic, utc) in pairwise(sorted(times))
    )
