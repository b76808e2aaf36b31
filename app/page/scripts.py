"""The page's scripts: the ES modules of app/page/static, served as they are.

Their addresses have a hash of them all, so that browsers keep them, and load new ones after an update.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

STATIC = Path(__file__).parent / "static"
MODULES = {path.name: path.read_bytes() for path in sorted(STATIC.glob("*.js"))}
VERSION = hashlib.sha256(b"\0".join(MODULES.values())).hexdigest()[:16]


def scripts_route() -> Route:
    """Return the route of the modules."""

    def script(request: Request) -> Response:
        text = MODULES.get(request.path_params["name"])
        if text is None:
            return Response("There is no such script.\n", 404, media_type="text/plain")
        # Two versions of the app may answer at the same address while one replaces the other.
        current = request.path_params["version"] == VERSION
        keep = "public, max-age=31536000, immutable" if current else "no-store"
        return Response(text, headers={"Cache-Control": keep}, media_type="text/javascript")

    return Route("/scripts/{version}/{name}", script)


def preload_tags(module: str) -> str:
    """Return tags for a page's head: browsers load a module and its imports while they load Gradio."""
    names = [f"{module}.js"]
    for name in names:
        imported = re.findall(r'from "\./(.+\.js)"', MODULES[name].decode())
        names += [each for each in imported if each not in names]
    return "".join(f'<link rel="modulepreload" href="scripts/{VERSION}/{name}">\n' for name in names)


def make_studio(module: str, failed: str, **options: Any) -> Any:
    """Make the element that a module fills: its `open` gets the element and Gradio's `trigger` for events.

    Args:
        module: its name.
        failed: shown if it can't be loaded.
        options: of gr.HTML.
    """
    script = f"""
    // Gradio looks here for the events that it can have: "act", "note", "fill".
    import(new URL("scripts/{VERSION}/{module}.js", document.baseURI)).then(
      ({{ open }}) => open(element, trigger),
      () => element.replaceChildren({json.dumps(failed)}),
    );"""
    return gr.HTML(
        None, html_template="", js_on_load=script, apply_default_css=False, elem_id="studio", **options
    )
