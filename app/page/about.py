"""The page's About: the model's card and its solver's, from the model's folder."""

import re
from pathlib import Path

from markdown_it import MarkdownIt
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from app.backends.base import Backend
from app.catalogue.table import entry_for
from app.jobs.job import RequestError

INTRODUCTION = """
# Diffusion Preview

Previews take a few solver steps and finals many, both from the same noise: the final is the finished
preview. The learned solver and the small model that draws here are described below.
"""
# In the model's folder.
CARDS = ("README.md", "solver/README.md")


def about_routes(backend: Backend) -> list[BaseRoute]:
    """Return the routes of /about, a piece of HTML, and of the pictures in it."""

    def about(request: Request) -> Response:
        folder = _folder(backend)
        texts = [INTRODUCTION]
        for card in CARDS:
            if folder and (folder / card).is_file():
                texts.append(_place_pictures((folder / card).read_text(encoding="utf-8"), Path(card).parent))
        return HTMLResponse("".join(_render(text) for text in texts))

    def picture(request: Request) -> Response:
        folder, wanted = _folder(backend), request.path_params["path"]
        # Looked up among the files, so that no path of a request reaches the file system.
        found = {str(path.relative_to(folder)): path for path in folder.rglob("*.png")} if folder else {}
        if wanted not in found:
            return Response("There is no such picture.\n", 404, media_type="text/plain")
        return FileResponse(found[wanted], headers={"Cache-Control": "max-age=3600"})

    return [Route("/about", about), Route("/about/{path:path}", picture)]


def _folder(backend: Backend) -> Path | None:
    """Return the model's folder, if it is one of the repository's."""
    try:
        entry = entry_for(backend.facts.name)
    except RequestError:  # still loading
        return None
    return entry.folder if entry else None


def _place_pictures(card: str, folder: Path) -> str:
    """Return a card without its front matter, its pictures' addresses being those of `about_routes`."""
    card = re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL)
    return re.sub(r"!\[([^]]*)\]\(([^):]+)\)", lambda m: f"![{m[1]}](about/{folder / m[2]})", card)


def _render(text: str) -> str:
    """Return Markdown as HTML. HTML in it is shown as text; links to other files lose their target."""
    html = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    html = re.sub(r'<a href="(?!https?:)[^"]*">(.*?)</a>', r"\1", html)
    html = re.sub(r'<a href="(https?:[^"]*)">', r'<a href="\1" target="_blank" rel="noopener">', html)
    return f"<section>{html}</section>"
