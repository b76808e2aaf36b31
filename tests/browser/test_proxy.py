"""The page behind a reverse proxy that serves it below a path."""

from pathlib import Path

from app.server.service import build_app, launch_page
from tests.app.server.proxy import serve_below
from tests.browser.conftest import NewPage, preview, sources
from tests.conftest import Served, free_port


def test_scripts_stream_and_pictures_are_found_below_a_path(
    served: Served, new_page: NewPage, tmp_path: Path
) -> None:
    app = build_app(served.worker, tmp_path)
    inside = launch_page(app, "127.0.0.1", free_port(), root_path="/below/it")
    with serve_below("/below/it", inside) as outside:
        page = new_page()
        page.goto(outside)
        preview(page)
        assert all(source.startswith(f"{outside}pictures/") for source in sources(page))
        assert page.errors == []
        page.context.close()
    app.close()
