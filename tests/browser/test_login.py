"""The page where people log in: who may see what, how much each may ask for, and when that ends."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.models import ImageModel
from app.server import auth, service
from app.server.limits import Limits
from app.server.metered import MeteredBackend
from app.server.metrics import Metrics
from app.server.settings import Settings
from app.worker import Worker
from tests.browser.conftest import NewPage, preview, seeds, wait_for_grid
from tests.conftest import free_port

axe = pytest.importorskip("axe_playwright_python.sync_playwright")

PASSWORDS = {"ada": "four corners", "bob": "a lake at night"}


@pytest.fixture(scope="module")
def guarded(model: ImageModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    """An app that asks for a login: its address, and its limits."""
    folder = tmp_path_factory.mktemp("guarded")
    for name, password in PASSWORDS.items():
        auth.add(folder / "logins", name, password)
    limits = Limits(10_000)
    worker = Worker(model)
    metered = MeteredBackend(worker, Metrics(), limits)
    page = service.build_app(metered, folder)
    options = service.launch_options(Settings(), metered, auth.read(folder / "logins"))
    yield service.launch_page(page, "127.0.0.1", free_port(), **options), limits
    page.close()
    worker.close()


@pytest.fixture
def enter(new_page: NewPage, guarded: tuple[str, Any]) -> Callable[..., Any]:
    """Opens the page in a browser of its own."""

    def enter(address: str = "", **options: Any) -> Any:
        page = new_page(**options)
        page.goto(guarded[0] + address)
        return page

    return enter


def log_in(page: Any, name: str, password: str = "") -> None:
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(password or PASSWORDS[name])
    page.keyboard.press("Enter")
    if not password:
        page.locator(".log-out").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_wrong_password_is_told_and_the_right_one_opens_the_page(
    enter: Callable[..., Any], scheme: str
) -> None:
    page = enter("?prompt=wide+sea+at+dawn", color_scheme=scheme)
    assert page.title() == "Log in · Diffusion Preview"
    assert page.evaluate("document.activeElement.id") == "username"
    log_in(page, "ada", "four rooms")
    page.get_by_role("alert").get_by_text("is wrong").wait_for()
    assert page.get_by_label("Name").input_value() == "ada"
    found = axe.Axe().run(page).response["violations"]
    assert [rule["id"] for rule in found if rule["impact"] in ("serious", "critical")] == []
    log_in(page, "ada")
    page.wait_for_function("document.querySelector('#prompt input').value === 'wide sea at dawn'")
    assert "your login, ada" in page.locator(".page-foot").inner_text()
    assert page.errors == []


def test_a_history_is_a_persons_in_whatever_browser(enter: Callable[..., Any]) -> None:
    page = enter()
    log_in(page, "ada")
    preview(page, "quiet hills")
    mine = seeds(page)
    page.locator(".log-out").click()
    log_in(page, "bob")  # in the same browser and tab
    page.locator(".tile.ghost").first.wait_for()
    page.locator(".page-foot", has_text="pixels").wait_for()
    assert page.locator("#prompt input").input_value() == ""
    assert page.locator(".entry").count() == 0
    elsewhere = enter()
    log_in(elsewhere, "ada")
    elsewhere.locator(".entry-prompt", has_text="quiet hills").first.wait_for()
    elsewhere.locator(".entry .open").first.click()
    elsewhere.locator(f".tile .seed:text-is('#{mine[0]}')").wait_for()
    assert page.errors == elsewhere.errors == []


def test_logged_out_meanwhile_is_told_and_the_prompt_survives(
    enter: Callable[..., Any], guarded: tuple[str, Any]
) -> None:
    page = enter()
    log_in(page, "bob")
    page.get_by_text("pixels").wait_for()
    page.fill("#prompt input", "a lake & a boat")
    other = page.context.new_page()
    other.goto(f"{guarded[0]}logout")
    page.press("#prompt input", "Enter")
    page.get_by_text("You are logged out").wait_for()
    page.wait_for_function("document.querySelector('.grid').getAttribute('aria-busy') === 'false'")
    page.get_by_role("link", name="Log in again").click()
    log_in(page, "bob")
    page.wait_for_function("document.querySelector('#prompt input').value === 'a lake & a boat'")


def test_too_much_is_told_with_the_time_to_come_back(
    enter: Callable[..., Any], guarded: tuple[str, Any]
) -> None:
    page = enter()
    log_in(page, "bob")
    preview(page, "quiet hills")
    before = seeds(page)
    guarded[1].charge("bob", 10_000 + 5_000)
    page.keyboard.press("r")
    page.get_by_role("alert").get_by_text("try again in 3").wait_for()
    wait_for_grid(page)
    assert seeds(page) == before
    guarded[1].charge("bob", -20_000)
    page.keyboard.press("r")
    page.wait_for_function("old => document.querySelector('.seed').textContent !== old", arg=f"#{before[0]}")
    wait_for_grid(page)


def test_strangers_get_nothing_but_the_login(guarded: tuple[str, Any], tmp_path: Path) -> None:
    url = guarded[0]
    assert "Log in" in httpx.get(url).text
    none = "0" * 32
    for path in ("config", "about", f"pictures/{none}/{none}.png", f"sketches/{none}"):
        assert httpx.get(url + path).status_code == 401, path
    for path in ("live", "export", "restore", "gradio_api/call/v2/preview"):
        assert httpx.post(url + path, json={}).status_code == 401, path
