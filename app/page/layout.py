"""The layout of the page, and the listeners of its events."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

from app.backends.base import Backend
from app.history.shelf import History
from app.jobs.job import LIMITS, RequestError
from app.page import filling, handlers, prompts
from app.page.about import about_routes
from app.page.click import Click, Form, Studio
from app.page.form import FULL_STEPS, MAX_GUIDANCE, PREVIEW_STEPS, PROMPT
from app.page.gradio_internals import Blocks, accept_any_value, event_data
from app.page.live import file_routes, live_routes
from app.page.scripts import STATIC, make_studio, preload_tags, scripts_route
from app.page.session import GRACE_S, Sessions
from app.page.sketches import Sketches
from solver import SOLVERS

TITLE = "Diffusion Preview"
# Options of events. "multiple" lets a second click arrive, so that it gets an answer. Events that submit jobs
# go through Gradio's queue, from which a ZeroGPU Space knows who asks; it lets all through at once, since the
# worker decides who waits for whom.
SILENT: Mapping[str, Any] = dict(show_progress="hidden", api_visibility="private", trigger_mode="multiple")
QUEUED: Mapping[str, Any] = {**SILENT, "concurrency_limit": None}
# Tells static/form.js what the form has, by the names of `Form`.
_REPORT_FORM = f"""(...values) => {{
  const names = {[field.name for field in fields(Form)]};
  const detail = Object.fromEntries(names.map((name, at) => [name, values[at]]));
  dispatchEvent(new CustomEvent("form", {{ detail }}));
}}"""


class Page(Blocks):
    """The page's Blocks, and what is served with them (see `app.server.service.launch_page`).

    Attributes:
        routes: addresses of its own beside Gradio's.
        styles: its style sheets.
        head_html: goes into the page's head, see `app.server.head`.
        login_labels: replace texts of the login page, see `app.server.login`.
        sessions: the tabs that show it.
    """

    routes: Sequence[BaseRoute] = ()
    styles: Sequence[Path] = (STATIC / "page.css",)
    head_html: str = ""
    login_labels: Mapping[str, str] = {}
    sessions: Sessions

    def close(self, verbose: bool = True) -> None:
        """End the streams that pages listen to, and then the server."""
        self.sessions.close()
        super().close(verbose)


def build_page(
    backend: Backend,
    data: Path,
    grace_s: float = GRACE_S,
    watch: handlers.Watch = nullcontext,
    logged: str = "",
) -> Page:
    """Build the page, to be served with `app.server.service.launch_page`.

    Args:
        data: folder of the app's data; histories are in its subfolder "history".
        grace_s: see `app.page.session`.
        watch: see `app.page.handlers`.
        logged: what the page's foot says about logs.
    """
    sessions = Sessions(History(data / "history"), grace_s)
    studio = Studio(backend, Sketches())
    with Page(title=TITLE, analytics_enabled=False) as page:
        page.sessions = sessions
        page.routes = [
            *live_routes(backend, sessions, studio.sketches),
            *file_routes(sessions),
            *about_routes(backend),
            scripts_route(),
            Route("/card.png", _card),
        ]
        page.head_html = (STATIC / "head.html").read_text(encoding="utf-8") + preload_tags("main")
        with gr.Row(elem_classes="masthead"):
            gr.HTML(
                f"<h1>{TITLE}</h1><p>See four quick previews, pick one, and only that one is finished.</p>",
                elem_classes="masthead-title",
            )
            surprise = gr.Button("Surprise me", size="sm", scale=0, elem_classes="surprise")
            read = gr.Button("Reuse a picture …", size="sm", scale=0, elem_id="read")
            about = gr.Button("About", size="sm", scale=0, elem_id="about")
            keys = gr.Button("Keys", size="sm", scale=0, elem_id="keys")
        with gr.Row(elem_classes="prompt-row"):
            prompt = gr.Textbox(
                "",
                placeholder=PROMPT,
                label="Prompt",
                show_label=False,
                container=False,
                lines=1,
                max_lines=1,
                autofocus=True,
                elem_id="prompt",
                scale=1,
            )
            begin = gr.Button("Add picture", scale=0, elem_id="begin")
            go = gr.Button("Preview", variant="primary", scale=0, elem_id="go")
        gr.HTML("", elem_id="start", padding=False)
        with gr.Row(elem_classes="ideas"):
            ideas = [gr.Button(example, size="sm") for example in prompts.EXAMPLES]
        form = [prompt, *_settings()]
        view = make_studio("main", "The page could not be loaded. Please load it again.")
        gr.HTML(
            "<p class='page-foot'>Model: <span id='model-line'>loading …</span>. Nothing that you type or "
            "make leaves this server. What you make is kept for <span id='kept-for'>this browser</span> "
            "alone, until you delete it. "
            f"{escape(logged)}</p>"
        )
        _connect(view, form, studio, sessions, watch)
        gr.on([part.change for part in form], None, form, js=_REPORT_FORM, **SILENT)  # type: ignore[attr-defined]
        gr.on([prompt.submit, go.click], None, js=_dispatch("preview"), **SILENT)
        for idea, example in zip(ideas, prompts.EXAMPLES, strict=True):
            idea.click(None, outputs=prompt, js=f"() => {example!r}", **SILENT).then(
                None, js=_dispatch("preview"), **SILENT
            )
        surprise.click(prompts.surprise, None, prompt, queue=False, **SILENT).then(
            None, js=_dispatch("preview"), **SILENT
        )
        for button, name in ((begin, "begin"), (read, "read"), (keys, "help"), (about, "about")):
            button.click(None, js=_dispatch(name), **SILENT)
    return page


def _connect(
    view: Any, form: list[gr.components.Component], studio: Studio, sessions: Sessions, watch: handlers.Watch
) -> None:
    """Answer the events of the page's scripts: "act" and "note" by actions, "fill" by values for the form."""
    parts = dict(zip([field.name for field in fields(Form)], form, strict=True))

    @contextmanager
    def clicked(event: gr.EventData, request: gr.Request, *settings: Any) -> Iterator[Click]:
        """Yield an event's click. A RequestError is shown in its tab or, without a session, by Gradio."""
        values = event_data(event)
        try:
            session = sessions.of(values.get("browser"), values.get("tab"), request.username or "")
        except RequestError as error:
            raise gr.Error(escape(str(error)), print_exception=False) from error
        try:
            yield Click(studio, session, values, Form(*settings))
        except RequestError as error:
            session.tell(str(error), about=str(values.get("do"))[:20])

    def act(event: gr.EventData, request: gr.Request, *settings: Any) -> None:
        with clicked(event, request, *settings) as click:
            handlers.perform(click, submits=True, watch=watch)

    def note(event: gr.EventData, request: gr.Request) -> None:
        with clicked(event, request) as click:
            handlers.perform(click, submits=False, watch=watch)

    def fill(event: gr.EventData, request: gr.Request) -> dict[gr.components.Component, Any]:
        changes: dict[str, dict[str, Any]] = {}
        with clicked(event, request) as click:
            changes = filling.fill(click)
        # All of them: without any, Gradio would take the empty dict for a value of one.
        return {part: gr.update(**changes.get(name, {})) for name, part in parts.items()}

    view.act(act, form, None, **QUEUED)
    view.note(note, None, None, queue=False, **SILENT)
    view.fill(fill, None, form, queue=False, **SILENT)


def _card(request: Request) -> Response:
    return FileResponse(STATIC / "card.png", headers={"Cache-Control": "max-age=86400"})


def _dispatch(what: str) -> str:
    """Return a button's script, which tells those of the page of a click, see the end of static/main.js."""
    return f"() => {{ dispatchEvent(new CustomEvent('studio', {{ detail: '{what}' }})); }}"


def _settings() -> list[gr.components.Component]:
    """Lay out the drawer of settings; return them in the order of `Form`."""
    usual = Form()
    with gr.Accordion("Settings", open=False, elem_classes="settings"):
        with gr.Row():
            negative = gr.Textbox("", label="Negative prompt", info="What should not be in the picture")
            guidance = gr.Slider(
                1, MAX_GUIDANCE, usual.guidance, step=0.5, label="Guidance", info="How literally to take it"
            )
            solver = gr.Dropdown(list(SOLVERS), value=usual.solver, label="Solver", info="For the previews")
        with gr.Row():
            most = LIMITS["count"].high
            count = gr.Slider(1, most, usual.count, step=1, label="Previews", info="How many to choose from")
            low, high = PREVIEW_STEPS
            steps = gr.Slider(
                low, high, usual.steps, step=1, label="Preview steps", info="More: slower, nearer to the end"
            )
            low, high = FULL_STEPS
            full_steps = gr.Slider(
                low, high, usual.full_steps, step=1, label="Full steps", info="Of the refined picture"
            )
            full_solver = gr.Dropdown(
                list(SOLVERS), value=Studio.final_solver, label="Full solver", info="Of the refined picture"
            )
        # Its choices come with the model, see `form_for`.
        size = gr.Radio([], label="Size", info="Width × height in pixels", visible=False, elem_id="size")
        with gr.Row():
            random_seeds = gr.Checkbox(True, label="Random seeds", info="Other pictures every time")
            seed = gr.Number(1, label="First seed", info="The others follow it", precision=0, visible=False)
            variation = gr.Textbox(
                "",
                label="Variation",
                info="77:0.3 turns its noise 30 % towards that of 77; the others towards 78, 79 and on",
                max_lines=1,
                visible=False,
            )
    for part in (steps, full_steps, guidance, size):
        accept_any_value(part)
    random_seeds.change(
        lambda drawn: [gr.update(visible=not drawn)] * 2,
        random_seeds,
        [seed, variation],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    return [
        negative,
        count,
        steps,
        guidance,
        solver,
        random_seeds,
        seed,
        full_steps,
        size,
        variation,
        full_solver,
    ]
