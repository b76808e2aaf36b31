"""Store events in a database: SQLite for one machine, PostgreSQL for several.

`append` returns once the event is on the disk, so a killed process loses at most the event in flight.
The page cannot reach the events.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import sqlalchemy as sql
from sqlalchemy.exc import SQLAlchemyError

from app.study.log.events import LogEvent
from app.study.shared import StudyProblem

DAY_S = 86_400.0
_BUSY_MS = 30_000

_TABLES = sql.MetaData()
_EVENTS = sql.Table(
    "events",
    _TABLES,
    sql.Column("number", sql.BigInteger().with_variant(sql.Integer, "sqlite"), primary_key=True),
    sql.Column("id", sql.String(32), unique=True, nullable=False),
    sql.Column("participant", sql.String(32), index=True, nullable=False),
    sql.Column("kind", sql.String(32), nullable=False),
    sql.Column("utc", sql.Double, nullable=False),
    sql.Column("line", sql.Text, nullable=False),
)


class StoreError(StudyProblem):
    """A log that can't be opened; the message says why."""


class Store(Protocol):
    """The operations on a log."""

    def append(self, event: LogEvent) -> None:
        """Write an event to the disk; an event with the same id is left as it is."""
        ...

    def join(self, choose: Callable[[list[str]], LogEvent]) -> LogEvent:
        """Append the event that `choose` returns for the lines of all sessions' beginnings and ends.

        The store is locked meanwhile, for this process and all others.
        """
        ...

    def lines(self, participant: str | None = None) -> Iterator[str]:
        """Yield all events, or one participant's, in the order of writing, as lines of JSON.

        `app.study.log.events.read_event` reads a line.
        """
        ...

    def withdraw(self, participant: str) -> int:
        """Delete all events of a participant; return how many."""
        ...

    def prune(self, days: float) -> int:
        """Delete the participants whose last event is older than that; return the number of events."""
        ...

    def close(self) -> None:
        """Write all pending events, and close the store."""
        ...


class SqlStore:
    """A `Store` in a database of SQLAlchemy: `sqlite:///file` or `postgresql+psycopg://…`."""

    def __init__(self, url: str) -> None:
        shown = url.removeprefix("sqlite:///") if url.startswith("sqlite:") else _without_password(url)
        try:
            self._engine = sql.create_engine(url, pool_pre_ping=True)
            self._sqlite = self._engine.dialect.name == "sqlite"
            if self._sqlite:
                sql.event.listen(self._engine, "connect", _prepare_sqlite)
                sql.event.listen(self._engine, "begin", _begin_immediately)
            with self._engine.begin() as connection:
                if not self._sqlite:  # two processes may be the first
                    connection.execute(sql.text("SELECT pg_advisory_xact_lock(7860)"))
                self._refuse_others(connection, shown)
                _TABLES.create_all(connection)
        except (SQLAlchemyError, ImportError) as error:
            raise StoreError(f"the log {shown} can't be opened ({_reason(error)}).") from error

    def _refuse_others(self, connection: sql.Connection, shown: str) -> None:
        """Raise StoreError for another program's file, or for its table called "events".

        A server's database may hold other tables beside the log's.
        """
        found = sql.inspect(connection)
        names = found.get_table_names()
        if "events" in names:
            ours = {column["name"] for column in found.get_columns("events")} == {*_EVENTS.c.keys()}
        else:
            ours = not (self._sqlite and names)
        if not ours:
            raise StoreError(
                f"{shown} belongs to another program and is not the log of a study. Choose another."
            )

    def append(self, event: LogEvent) -> None:
        with self._engine.begin() as connection:
            _insert(connection, event)

    def join(self, choose: Callable[[list[str]], LogEvent]) -> LogEvent:
        with self._engine.begin() as connection:
            if not self._sqlite:
                connection.execute(sql.text("LOCK TABLE events IN SHARE ROW EXCLUSIVE MODE"))
            ends = _EVENTS.c.kind.in_(("session", "session_end"))
            found = connection.execute(sql.select(_EVENTS.c.line).where(ends).order_by(_EVENTS.c.number))
            event = choose([line for (line,) in found])
            _insert(connection, event)
        return event

    def lines(self, participant: str | None = None) -> Iterator[str]:
        query = sql.select(_EVENTS.c.line).order_by(_EVENTS.c.number)
        if participant is not None:
            query = query.where(_EVENTS.c.participant == participant)
        with self._engine.connect() as connection:
            for (line,) in connection.execute(query):
                yield line

    def withdraw(self, participant: str) -> int:
        with self._engine.begin() as connection:
            count = connection.execute(sql.delete(_EVENTS).where(_EVENTS.c.participant == participant))
        self._forget()
        return count.rowcount

    def prune(self, days: float) -> int:
        last = sql.func.max(_EVENTS.c.utc)
        old = sql.select(_EVENTS.c.participant).group_by(_EVENTS.c.participant)
        old = old.having(last < time.time() - days * DAY_S)
        with self._engine.begin() as connection:
            count = connection.execute(sql.delete(_EVENTS).where(_EVENTS.c.participant.in_(old)))
        self._forget()
        return count.rowcount

    def close(self) -> None:
        self._engine.dispose()

    def _forget(self) -> None:
        """Remove deleted rows from SQLite's write-ahead log too."""
        if self._sqlite:
            with self._engine.connect() as connection:
                connection.connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")


def open_store(log: str) -> SqlStore:
    """Open the store of a log: the path of an SQLite file, or the URL of a PostgreSQL server.

    Raises StoreError if it can't be opened.
    """
    if log.startswith(("postgresql://", "postgres://")):
        return SqlStore("postgresql+psycopg://" + log.partition("://")[2])
    if "://" in log:
        raise StoreError(f"{_without_password(log)} is neither a path nor a postgresql:// URL.")
    path = Path(log)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"the folder of {path} can't be made ({error.strerror}).") from error
    return SqlStore(f"sqlite:///{path}")


def append_all(store: Store, events: Iterable[LogEvent]) -> int:
    """Append several events; return how many."""
    count = 0
    for event in events:
        store.append(event)
        count += 1
    return count


def _insert(connection: sql.Connection, event: LogEvent) -> None:
    row = {
        "id": event.id, "participant": event.participant, "kind": event.kind, "utc": event.utc,
        "line": event.write(),
    }  # fmt: skip
    known = sql.select(_EVENTS.c.id).where(_EVENTS.c.id == event.id)
    if connection.execute(known).first() is None:
        connection.execute(sql.insert(_EVENTS).values(row))


def _prepare_sqlite(connection: object, _: object) -> None:
    """Log ahead, sync to the disk, wait for other processes, and overwrite what is deleted."""
    connection.isolation_level = None  # type: ignore[attr-defined]  # `_begin_immediately` says when
    cursor = connection.cursor()  # type: ignore[attr-defined]
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"):
        cursor.execute(f"PRAGMA {pragma}")


def _begin_immediately(connection: sql.Connection) -> None:
    """Lock before reading, or two participants could be given the same place."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _without_password(url: str) -> str:
    try:
        return sql.make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return "of this URL"


def _reason(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]
