"""A study's page: the ordinary page's previews and stage, and around them the phases of a study."""

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
from app.page.layout import QUEUED, SILENT, Page
from app.page.live import live_routes, refusal, session_of
from app.page.scripts import STATIC, make_studio, preload_tags, scripts_route
from app.page.session import GRACE_S, Session, Sessions
from app.page.sketches import Sketches
from app.server.limits import Limits, address_of
from app.study.log.enrolment import DROPPED_OUT_S
from app.study.log.writer import Writer
from app.study.page.actions import perform, report
from app.study.page.participation import Lab, Participations
from app.study.page.views import own_words, study_views
from app.study.plan import Study

log = logging.getLogger("app.study")

HEAD = (
    '<meta name="theme-color" content="#faf8f5" media="(prefers-color-scheme: light)">\n'
    '<meta name="theme-color" content="#12131a" media="(prefers-color-scheme: dark)">\n'
    '<meta name="robots" content="noindex">\n'
)
# The pictures of current trials, below the app's data; they are deleted when the next trial begins.
FOLDER = "study-now"


class PlainShelf(Shelf):
    """A shelf whose pictures do not say how they were made."""

    def put(self, png: bytes, name: str = "") -> str:
        return super().put(without_text(png), name)


class TabHistory(History):
    """A shelf for each tab, not for each login: several participants may share one."""

    def shelf(self, browser: object, login: str = "") -> Shelf:
        return super().shelf(browser)


def build_study_page(
    backend: Backend,
    data: Path,
    study: Study,
    writer: Writer,
    where: str,
    grace_s: float = GRACE_S,
    enrolments: int = 30,
) -> Page:
    """Build the page of a study, to be served with `app.server.service.launch_page`.

    Args:
        data: the folder for the pictures of current trials.
        where: the log that `writer` writes to.
        enrolments: how many participants one address may enrol per hour.
    """
    _delete_abandoned(data / FOLDER)
    sessions = Sessions(TabHistory(data / FOLDER, shelves=PlainShelf), grace_s)
    sketches = Sketches()
    limits = Limits(enrolments, per_s=3600)
    visits = Participations(Lab(study, writer, where, backend, sketches, limits))
    login = {name.removeprefix("login_"): text for name, text in study.labels.items() if "login_" in name}
    with Page(title=study.title, analytics_enabled=False) as page:
        page.sessions, page.head_html = sessions, HEAD + preload_tags("study")
        page.styles = (*Page.styles, STATIC / "study.css")
        page.login_labels = {"language": study.language, "title": study.title, **login}
        page.routes = [
            *live_routes(backend, sessions, sketches, partial(study_views, visits)),
            scripts_route(),
            Route("/report", partial(_report, sessions, visits), methods=["POST"]),
        ]
        gr.HTML(f"<h1>{escape(study.title)}</h1>", elem_classes="masthead-title study-title", padding=False)
        view = make_studio("study", study.labels["again"], elem_classes="is-study")

        def act(event: gr.EventData, request: gr.Request) -> None:
            values = event_data(event)
            session = None
            try:
                session = sessions.of(values.get("browser"), values.get("tab"), request.username or "")
                perform(visits.of(session), values, address_of(request))
            except RequestError as error:
                _tell(study, session, own_words(study, str(error), "again"))
            except Exception:  # or Gradio would show its own message
                log.exception("A click failed")
                _tell(study, session, study.labels["problem"])

        view.act(act, None, None, **QUEUED)
        view.note(act, None, None, queue=False, **SILENT)
    return page


def _tell(study: Study, session: Session | None, message: str) -> None:
    """Show a message in the tab or, without a session, by Gradio's page."""
    if session is None:
        raise gr.Error(escape(message), title=escape(study.title), print_exception=False)
    session.tell(message)


def _delete_abandoned(folder: Path) -> None:
    """Delete the pictures of trials whose participants have dropped out; the others may still come back."""
    for each in folder.glob("*/"):
        if each.stat().st_mtime < time.time() - DROPPED_OUT_S:
            shutil.rmtree(each, ignore_errors=True)


async def _report(sessions: Sessions, visits: Participations, request: Request) -> Response:
    """Answer a browser that reports what it painted, or that the page was hidden."""
    try:
        session, values = await session_of(request, sessions)
        await asyncio.to_thread(lambda: report(visits.of(session), values))
    except RequestError as error:
        return refusal(error, 422)
    return Response(status_code=204)


def without_text(png: bytes) -> bytes:
    """Return a PNG of the same picture, without the text that says how it was made."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        picture.copy().save(buffer, "PNG", pnginfo=None)
    return buffer.getvalue()
