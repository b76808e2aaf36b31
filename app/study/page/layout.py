"""A study's page: the ordinary page's previews and stage, and around them what a participant goes through.

Nothing here reads the log: it is only written to.
"""

import asyncio
import io
import logging
import shutil
import time
from functools import partial
from html import escape
from pathlib import Path

import gradio as gr
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.backends.base import Backend
from app.history.shelf import History, Shelf
from app.jobs.job import RequestError
from app.page.gradio_internals import event_data
from app.page.layout import QUEUED, SILENT, STATIC, Page, make_studio
from app.page.live import live_routes, refusal, session_of
from app.page.session import GRACE_S, Session, Sessions
from app.page.sketches import Sketches
from app.study.log.enrolment import DROPPED_OUT_S
from app.study.log.writer import Writer
from app.study.page.participation import Lab, Participations
from app.study.page.views import own_words, study_views
from app.study.plan.definition import Study

log = logging.getLogger("app.study")

SCRIPTS = ("core.js", "grid.js", "stage.js", "study.js")
HEAD = (
    '<meta name="theme-color" content="#faf8f5" media="(prefers-color-scheme: light)">\n'
    '<meta name="theme-color" content="#12131a" media="(prefers-color-scheme: dark)">\n'
    '<meta name="robots" content="noindex">\n'
)
# The pictures of trials that are on, below the app's data; a trial that ends has its own deleted.
FOLDER = "study-now"


class PlainShelf(Shelf):
    """A shelf whose pictures do not say how they were made."""

    def put(self, png: bytes, name: str = "") -> str:
        """See `Shelf`."""
        return super().put(without_text(png), name)


class TabHistory(History):
    """A shelf for each tab, whatever it has logged in as: several participants may have one login."""

    def shelf(self, browser: object, login: str = "") -> Shelf:
        """See `History`."""
        return super().shelf(browser)


def build_study_page(
    backend: Backend, data: Path, study: Study, writer: Writer, where: str, grace_s: float = GRACE_S
) -> Page:
    """The page of a study, to be opened with `app.server.service.launch_page`.

    data: the folder for what is kept for the moment. where: the log that the writer writes.
    """
    _forget_left(data / FOLDER)
    sessions = Sessions(TabHistory(data / FOLDER, shelves=PlainShelf), grace_s)
    sketches = Sketches()
    visits = Participations(Lab(study, writer, where, backend, sketches))
    with Page(title=study.title, analytics_enabled=False) as page:
        page.sessions, page.head_html = sessions, HEAD
        page.styles = (*Page.styles, STATIC / "study.css")
        page.login_labels = _login_words(study)
        page.routes = [
            *live_routes(backend, sessions, sketches, partial(study_views, visits)),
            Route("/report", partial(_report, sessions, visits), methods=["POST"]),
        ]
        gr.HTML(f"<h1>{escape(study.title)}</h1>", elem_classes="masthead-title study-title", padding=False)
        view = make_studio(SCRIPTS, elem_classes="is-study")

        def hear(event: gr.EventData, request: gr.Request) -> None:
            wish = event_data(event)
            session = None
            try:
                session = sessions.of(wish.get("browser"), wish.get("tab"), request.username or "")
                visits.of(session).do(wish)
            except RequestError as error:
                _tell(study, session, own_words(study, str(error), "again"))
            except Exception:  # or Gradio would tell of it, in its own words
                log.exception("What was clicked was not done")
                _tell(study, session, study.labels["problem"])

        view.act(hear, None, None, **QUEUED)
        view.note(hear, None, None, queue=False, **SILENT)
    return page


def _login_words(study: Study) -> dict[str, str]:
    """See `Page.login_labels`."""
    mine = {name.removeprefix("login_"): text for name, text in study.labels.items() if "login_" in name}
    return {"language": study.language, "title": study.title, **mine}


def _tell(study: Study, session: Session | None, words: str) -> None:
    """Show words in their tab; those of no tab have but Gradio's own message for it."""
    if session is None:
        raise gr.Error(escape(words), title=escape(study.title), print_exception=False)
    session.tell(words)


def _forget_left(folder: Path) -> None:
    """Delete the pictures of trials that nobody will come back to; who was at one a moment ago may."""
    for each in folder.glob("*/"):
        if each.stat().st_mtime < time.time() - DROPPED_OUT_S:
            shutil.rmtree(each, ignore_errors=True)


async def _report(sessions: Sessions, visits: Participations, request: Request) -> Response:
    """The browser tells what it painted, and whether somebody can see it."""
    try:
        session, told = await session_of(request, sessions)
        await asyncio.to_thread(lambda: visits.of(session).report(told))
    except RequestError as error:
        return refusal(error, 422)
    return Response(status_code=204)


def without_text(png: bytes) -> bytes:
    """The same picture as a PNG that says nothing of how it was made."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        picture.copy().save(buffer, "PNG", pnginfo=None)
    return buffer.getvalue()
