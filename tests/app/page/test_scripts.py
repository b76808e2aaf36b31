"""The page's scripts: each is served as a module, kept by browsers until it changes, and nothing else is."""

import re
from typing import Any

import httpx
import pytest

from app.page.click import Studio
from app.page.scripts import MODULES, STATIC, VERSION
from app.page.views import page_views
from app.study.page.views import blind_grid, blind_stage
from tests.app.page.clicks import NewSession, make_grid, refine


@pytest.mark.parametrize("name", MODULES)
def test_a_module_and_all_that_it_imports_are_served_and_kept(url: str, name: str) -> None:
    answer = httpx.get(f"{url}scripts/{VERSION}/{name}")
    assert answer.content == MODULES[name]
    assert answer.headers["content-type"].startswith("text/javascript")
    assert "immutable" in answer.headers["cache-control"]
    imported = re.findall(r'\bfrom "\./([^"]+\.js)"', answer.text)
    assert set(imported) <= MODULES.keys()


def test_a_page_of_another_version_gets_this_ones_scripts_and_does_not_keep_them(url: str) -> None:
    answer = httpx.get(f"{url}scripts/{'0' * len(VERSION)}/main.js")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")


@pytest.mark.parametrize("name", ["page.css", "none.js", "..%2Fhead.html", "types.d.ts"])
def test_no_other_file_is_served(url: str, name: str) -> None:
    assert httpx.get(f"{url}scripts/{VERSION}/{name}").status_code == 404


def test_the_page_loads_its_modules_once_from_addresses_that_are_kept(url: str) -> None:
    page = httpx.get(url).text
    assert f'new URL(\\"scripts/{VERSION}/main.js' in page, page
    preloaded = re.findall(f'rel="modulepreload" href="scripts/{VERSION}/(.*?)"', page)
    assert len(preloaded) == len(set(preloaded))
    assert set(preloaded) == {name for name in MODULES if not name.startswith("study")}


def fields(view: str) -> tuple[set[str], set[str]]:
    """The fields that a view has, and those that it may have, as its type for the scripts says."""
    types = (STATIC / "types.d.ts").read_text(encoding="utf-8")
    (body,) = re.findall(rf"interface {view} {{\n(.*?)\n}}", types, re.DOTALL)
    found = re.findall(r"^  (\w+)(\??):", body, re.MULTILINE)
    return {name for name, optional in found if not optional}, {name for name, _ in found}


def test_views_are_what_their_types_say(studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    make_grid(studio, session)
    refine(studio, session, 10)
    session.tell("Deleted.", "info", undo="0")
    views = page_views(studio.backend, session)
    shown: list[tuple[str, Any]] = [
        ("StatusView", views["status"]),
        ("GridView", views["grid"]),
        ("GridView", blind_grid(session, "")),
        *(("TileView", tile) for tile in views["grid"]["tiles"]),
        ("StageView", views["stage"]),
        ("StageView", blind_stage(session, "")),
        *(("EntryView", entry) for entry in views["history"]),
        *(("Notice", notice) for notice in views["notices"]),
    ]
    assert {name for name, _ in shown} == {
        "StatusView",
        "GridView",
        "TileView",
        "StageView",
        "EntryView",
        "Notice",
    }
    for name, view in shown:
        least, most = fields(name)
        assert least <= view.keys() <= most, name
    assert views.keys() <= fields("Views")[1]
