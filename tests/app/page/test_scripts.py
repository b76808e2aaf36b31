"""The page's scripts: each is served as a module, kept by browsers until it changes, and nothing else is."""

import re

import httpx
import pytest

from app.page.scripts import MODULES, VERSION


@pytest.mark.parametrize("name", MODULES)
def test_a_module_and_all_that_it_imports_are_served_and_kept(url: str, name: str) -> None:
    answer = httpx.get(f"{url}scripts/{VERSION}/{name}")
    assert answer.content == MODULES[name]
    assert answer.headers["content-type"].startswith("text/javascript")
    assert "immutable" in answer.headers["cache-control"]
    imported = re.findall(r'^import .* from "\./(.*)";$', answer.text, re.MULTILINE)
    assert imported == re.findall(r'\bfrom "\./([^"]*\.js)"', answer.text)
    assert set(imported) <= MODULES.keys()


def test_a_page_of_another_version_gets_this_ones_scripts_and_does_not_keep_them(url: str) -> None:
    answer = httpx.get(f"{url}scripts/{'0' * len(VERSION)}/main.js")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")


@pytest.mark.parametrize("name", ["page.css", "none.js", "..%2Fhead.html", "types.d.ts"])
def test_no_other_file_is_served(url: str, name: str) -> None:
    assert httpx.get(f"{url}scripts/{VERSION}/{name}").status_code == 404


def test_the_page_loads_its_module_from_the_address_that_is_kept(url: str) -> None:
    page = httpx.get(url).text
    assert f"scripts/{VERSION}/main.js" in page
    assert "function makeGrid" not in page, "scripts are not in the page itself"
