"""Build the page that the settings ask for: the ordinary page, with or without a log, or a study's."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.backends.base import Backend
from app.page.layout import Page
from app.server.service import build_app
from app.server.settings import Settings
from app.study.plan.definition import Study
from app.study.plan.study_file import read_study

if TYPE_CHECKING:  # imported only if there is a log: it needs requirements-study.txt
    from app.study.log.writer import Writer

logger = logging.getLogger("app.study")

NEEDS = "a log needs `pip install -r requirements-study.txt`"
# At these levels the app's own log says nothing about what a visitor does.
QUIET = ("warning", "error")
NOT_LOGGED = "Nothing that you do here is logged."


@dataclass(frozen=True)
class Opened:
    """A page and its log.

    Attributes:
        check: raises ValueError if the model can't make the pictures of the study's conditions.
        close: writes the last events and closes the log.
    """

    page: Page
    check: Callable[[Backend], None] = lambda backend: None
    close: Callable[[], None] = lambda: None


def open_page(settings: Settings, backend: Backend) -> Opened:
    """Build the page that the settings ask for, and open its log.

    Raises ValueError if the study file or the log can't be used.
    """
    data = settings.data.resolve()
    wait_s = settings.answer_wait
    if not settings.study and not settings.log:
        logged = NOT_LOGGED if settings.log_level in QUIET else ""
        return Opened(build_app(backend, data, wait_s, logged=logged))
    study = read_study(settings.study) if settings.study else None
    where = settings.log or settings.study_log or str(data / "study.sqlite")
    try:
        from app.study.page.conditions import check_conditions
        from app.study.page.layout import build_study_page
        from app.study.page.usage import FOOT, Usage
    except ImportError as error:
        raise ValueError(f"{NEEDS} ({error.name} is missing).") from error
    writer = _open_writer(settings, where, study)
    if study is None:
        page = build_app(backend, data, wait_s, watch=Usage(writer).watch, logged=FOOT)
        return Opened(page, close=writer.close)
    page = build_study_page(backend, data, study, writer, where, enrolments=settings.study_enrolments)
    return Opened(page, lambda ready: check_conditions(study, ready), writer.close)


def _open_writer(settings: Settings, where: str, study: Study | None) -> "Writer":
    """Open the log; delete what is older than the study's retention_days."""
    from app.study.log.pictures import delete_orphans
    from app.study.log.store import Store, open_store
    from app.study.log.writer import Writer

    store: Store = open_store(where)
    if settings.study_dataset:
        from app.study.log.hub import HubStore

        try:
            store = HubStore(store, settings.study_dataset)
        except Exception as error:  # any error of the Hub and the network
            store.close()
            raise ValueError(f"the dataset {settings.study_dataset} can't be used ({error}).") from error
    if study:
        events = store.prune(study.retention_days)
        pictures = delete_orphans(where, store)
        if events or pictures:
            days = study.retention_days
            logger.warning("Deleted after %d days: %d events and %d pictures", days, events, pictures)
    return Writer(store)
