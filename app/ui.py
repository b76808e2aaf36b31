"""The page: its layout, and which handler answers which click."""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from app import handlers, prompts
from app.api import add_endpoints
from app.backend import Backend
from app.job import LIMITS
from app.session import Session
from app.theme import make_theme
from solver import SOLVERS

PAGE = Path(__file__).parent / "page"
TITLE = "Diffusion Preview"
# Events in Gradio's queue, which each is in for but a moment.
MOST_WAITING = 1000


def build_page(worker: Backend, pictures: Path) -> gr.Blocks:
    """The page and the programs' endpoints, to be opened with `launch_page`.

    pictures: the folder for the PNGs that programs ask for, somewhere in Gradio's GRADIO_TEMP_DIR.
    """
    model = worker.facts
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        add_endpoints(worker, pictures)  # first, because names of endpoints go to whoever comes first
        session = gr.State(Session())
        gr.HTML(
            f"<header class='masthead'><h1>{TITLE}</h1>"
            "<p>See four quick previews, pick one, and only that one is finished.</p></header>"
        )
        with gr.Row(elem_classes="prompt-row"):
            prompt = gr.Textbox(
                "",
                placeholder="What would you like to see?",
                label="Prompt",
                show_label=False,
                container=False,
                lines=1,
                max_lines=1,
                autofocus=True,
                elem_id="prompt",
                scale=1,
            )
            go = gr.Button("Preview", variant="primary", scale=0, elem_id="go")
        with gr.Row(elem_classes="ideas"):
            ideas = [gr.Button(example, size="sm") for example in prompts.EXAMPLES]
            surprise = gr.Button("Surprise me", size="sm", elem_classes="surprise")
        form = [prompt, *_settings()]
        full_steps = form[-1]
        grid = gr.HTML(
            None, html_template="", js_on_load=_script("grid.js"), apply_default_css=False, elem_id="grid"
        )
        stage = gr.HTML(
            None, html_template="", js_on_load=_script("stage.js"), apply_default_css=False, elem_id="stage"
        )
        gr.HTML(
            f"<p class='page-foot'>Model: {escape(model.name)}, {model.size} × {model.size} pixels, "
            f"on {model.place}. Nothing that you type or make here is logged or kept.</p>"
        )

        def show_previews(
            request: gr.Request, session: Session, *form: Any
        ) -> Iterator[handlers.View | None]:
            owner = str(request.session_hash)
            yield from handlers.show_previews(worker, session, handlers.Settings(*form), owner)

        def reroll(
            session: Session, full_steps: float, event: gr.EventData
        ) -> Iterator[handlers.View | None]:
            yield from handlers.reroll(worker, session, full_steps, event._data or {})

        def refine(
            session: Session, full_steps: float, event: gr.EventData
        ) -> Iterator[handlers.View | None]:
            yield from handlers.refine(worker, session, full_steps, event._data or {})

        def point_at(session: Session, event: gr.EventData) -> None:
            handlers.point_at(session, event._data or {})

        def leave(request: gr.Request) -> None:
            worker.cancel(str(request.session_hash))

        # The worker decides who waits for whom, so Gradio's own queue lets everything through.
        # "multiple" lets a second click arrive, so that it gets an answer instead of silence.
        painting: dict[str, Any] = {
            "concurrency_limit": None,
            "trigger_mode": "multiple",
            "show_progress": "hidden",
            "api_visibility": "private",
        }
        preview_with = {"fn": show_previews, "inputs": [session, *form], "outputs": grid, **painting}
        gr.on([prompt.submit, go.click], **preview_with)
        for idea, example in zip(ideas, prompts.EXAMPLES, strict=True):
            _fill(idea, example, prompt).then(**preview_with)
        surprise.click(
            prompts.surprise, outputs=prompt, queue=False, show_progress="hidden", api_visibility="private"
        ).then(**preview_with)
        grid.reroll(reroll, [session, full_steps], grid, **painting)
        grid.point_at(point_at, session, queue=False, api_visibility="private")
        grid.refine(refine, [session, full_steps], stage, **painting)
        stage.stop_refining(handlers.stop_refining, session, queue=False, api_visibility="private")
        page.unload(leave)
    return page


def launch_page(page: gr.Blocks, host: str, port: int) -> str:
    """Serve the page in the background and give its URL. Raises OSError when the port is taken."""
    # On a ZeroGPU Space, Gradio would let a single event wait if it were not told otherwise.
    page.queue(default_concurrency_limit=None, max_size=MOST_WAITING)
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        theme=make_theme(),
        css_paths=PAGE / "page.css",
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        share=False,
        ssr_mode=False,
        pwa=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    return url


def _settings() -> list[gr.components.Component]:
    """The drawer of settings, in the order of `handlers.Settings`, and at the end the full steps."""
    with gr.Accordion("Settings", open=False, elem_classes="settings"):
        with gr.Row():
            negative = gr.Textbox("", label="Negative prompt", info="What should not be in the picture")
            guidance = gr.Slider(1, 12, 3, step=0.5, label="Guidance", info="How literally to take it")
            solver = gr.Dropdown(list(SOLVERS), value="consistency", label="Solver", info="For the previews")
        with gr.Row():
            most = LIMITS["count"].high
            count = gr.Slider(1, most, 4, step=1, label="Previews", info="How many to choose from")
            steps = gr.Slider(4, 8, 6, step=1, label="Preview steps", info="More: slower, nearer to the end")
            full_steps = gr.Slider(10, 100, 40, step=1, label="Full steps", info="Of the refined picture")
        with gr.Row():
            random_seeds = gr.Checkbox(True, label="Random seeds", info="Other pictures every time")
            seed = gr.Number(1, label="First seed", info="The others follow it", precision=0, visible=False)
    random_seeds.change(
        lambda drawn: gr.Number(visible=not drawn),
        random_seeds,
        seed,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    return [negative, count, steps, guidance, solver, random_seeds, seed, full_steps]


def _fill(button: gr.Button, text: str, box: gr.Textbox) -> Any:
    """Clicking `button` puts `text` into `box`, without asking the server."""
    return button.click(None, outputs=box, js=f"() => {text!r}", api_visibility="private")


def _script(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")
