"""Mirror a log to a private dataset on the Hub, for Spaces, whose disk is lost at every restart.

Events are written to SQLite first. Every few minutes, and at the end, new events go to the dataset as another
parquet file with a random name; after a restart they are read back from there.
"""

import logging
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import CommitScheduler, HfApi

from app.study.log.events import LogEvent, read_events
from app.study.log.reading import read_log, write_parquet
from app.study.log.store import Store, append_all

FOLDER = "events"
EVERY_MIN = 5.0
log = logging.getLogger("app.study")


class HubStore:
    """A `Store` mirrored to a dataset, "owner/name", which is created as private with the first event.

    `withdraw` and `prune` also delete from the dataset and its history.

    Raises:
        PermissionError: the dataset is public.
    """

    def __init__(
        self, store: Store, dataset: str, api: HfApi | None = None, every_min: float = EVERY_MIN
    ) -> None:
        self.dataset, self.api = dataset, api or HfApi()
        self._store, self._every = store, every_min
        self._lock = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="study-")
        self._scheduler: _Scheduler | None = None
        self._uploaded: set[str] = set()  # ids of the events in the dataset
        for name in self._files():
            known = self._fetch(name)
            append_all(store, known)
            self._uploaded |= {event.id for event in known}

    def append(self, event: LogEvent) -> None:
        self._store.append(event)
        self._wake()

    def join(self, choose: Callable[[list[str]], LogEvent]) -> LogEvent:
        event = self._store.join(choose)
        self._wake()
        return event

    def lines(self, participant: str | None = None) -> Iterator[str]:
        return self._store.lines(participant)

    def withdraw(self, participant: str) -> int:
        count = self._store.withdraw(participant)
        self._delete_from_dataset()
        return count

    def prune(self, days: float) -> int:
        count = self._store.prune(days)
        self._delete_from_dataset()
        return count

    def push(self) -> str | None:
        """Upload the new events, if there are any; return the file's name."""
        with self._lock:
            new = [event for event in read_events(self._store.lines()) if event.id not in self._uploaded]
            if not new:
                return None
            self._check_private()
            name = f"{FOLDER}/{secrets.token_hex(16)}.parquet"
            self._upload(name, new)
            self._uploaded |= {event.id for event in new}
            return name

    def close(self) -> None:
        """Upload the rest, and close the store."""
        if self._scheduler is not None:
            self._scheduler.stop()
            self._scheduler = None
            try:
                self.push()
            except Exception:
                log.exception(
                    "The last events could not be uploaded to %s; they are in the local log.", self.dataset
                )
        self._store.close()

    def _wake(self) -> None:
        with self._lock:
            if self._scheduler is None:
                self._scheduler = _Scheduler(self, Path(self._folder.name), self._every)

    def _delete_from_dataset(self) -> None:
        """Delete the events from the dataset that the store no longer has."""
        with self._lock:
            ours = {event.id for event in read_events(self._store.lines())}
            changed = False
            for name in self._files():
                there = self._fetch(name)
                kept = [event for event in there if event.id in ours]
                if len(kept) < len(there):
                    self._upload(name, kept)
                    changed = True
            if changed:  # the history still has them
                self.api.super_squash_history(self.dataset, repo_type="dataset")

    def _files(self) -> list[str]:
        if not self.api.repo_exists(self.dataset, repo_type="dataset"):
            return []
        self._check_private()
        names = self.api.list_repo_files(self.dataset, repo_type="dataset")
        return sorted(name for name in names if name.startswith(FOLDER) and name.endswith(".parquet"))

    def _fetch(self, name: str) -> tuple[LogEvent, ...]:
        path = self.api.hf_hub_download(
            self.dataset, name, repo_type="dataset", local_dir=self._folder.name, force_download=True
        )
        return read_log(path).events

    def _upload(self, name: str, events: Any) -> None:
        path = Path(self._folder.name) / f"{secrets.token_hex(8)}.parquet"
        write_parquet(events, path)
        try:
            self.api.upload_file(
                path_or_fileobj=path.read_bytes(),
                path_in_repo=name,
                repo_id=self.dataset,
                repo_type="dataset",
                commit_message="Study events",
            )
        finally:
            path.unlink()

    def _check_private(self) -> None:
        if not self.api.repo_info(self.dataset, repo_type="dataset").private:
            raise PermissionError(f"The dataset {self.dataset} is public. Make it private for a study's log.")


class _Scheduler(CommitScheduler):
    """Uploads a store's new events, instead of a folder's changed files."""

    def __init__(self, store: HubStore, folder: Path, every: float) -> None:
        self.store = store
        super().__init__(
            repo_id=store.dataset,
            repo_type="dataset",
            folder_path=folder,
            every=every,
            private=True,
            hf_api=store.api,
        )

    def push_to_hub(self) -> Any:
        """Called at intervals, in a thread of its own."""
        return self.store.push()
