"""What the app takes from Gradio's private parts is there, and works as the app needs it."""

import asyncio
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from gradio.queueing import Queue
from gradio.routes import App
from starlette.testclient import TestClient

from app.page import gradio_internals as internals

PASSWORD = "four corners"


def page_with(function: Callable[..., Any], *inputs: Any, name: str = "press") -> internals.Blocks:
    with internals.Blocks() as page:
        shown = [part.render() for part in inputs]
        gr.Button().click(function, shown, gr.JSON(), api_name=name)
    return page


def client_of(page: gr.Blocks, **auth: Any) -> TestClient:
    """Gradio's server of a page, without a network."""
    page.queue()
    app = App.create_app(page)
    for name, value in auth.items():
        setattr(app, name, value)
    return TestClient(app)


def test_an_events_data_is_what_a_script_sent() -> None:
    seen: list[Any] = []

    def note(event: gr.EventData) -> None:
        seen.append(internals.event_data(event))

    client = client_of(page_with(note))
    for sent in ({"do": "refine", "seed": 7}, None, [1], "text"):
        client.post("/gradio_api/run/press", json={"data": [], "event_data": sent}).raise_for_status()
    assert seen == [{"do": "refine", "seed": 7}, {}, {}, {}]


def test_an_events_request_can_be_had_without_passing_it_on() -> None:
    seen: list[Any] = []
    client = client_of(page_with(lambda: seen.append(internals.current_request())))
    client.post("/gradio_api/run/press", json={"data": [], "session_hash": "a tab"}).raise_for_status()
    assert seen[0].session_hash == "a tab" and seen[0].client.host == "testclient"
    assert seen[0].request.scope["type"] == "http" and seen[0].username is None
    assert internals.current_request() is None


def preprocess(page: internals.Blocks, *values: Any) -> list[Any]:
    return asyncio.run(page.preprocess_data(next(iter(page.fns.values())), list(values), None))


def test_a_value_that_no_control_can_send_is_refused_without_a_traceback() -> None:
    page = page_with(lambda value: value, gr.Radio(["a", "b"]))
    assert preprocess(page, "a") == ["a"]
    with pytest.raises(gr.Error, match="load the page again") as refused:
        preprocess(page, "c")
    assert refused.value.print_exception is False


def test_a_component_can_be_made_to_accept_any_value() -> None:
    radio = gr.Radio(["a", "b"], render=False)
    internals.accept_any_value(radio)
    assert preprocess(page_with(lambda value: value, radio), "c") == ["c"]


def test_a_login_is_known_from_gradios_cookie_and_only_from_that() -> None:
    page = page_with(lambda: None)
    open_app, client = client_of(page), client_of(page, auth={"ada": PASSWORD})
    scope = {"type": "http", "headers": [], "app": open_app.app}
    assert not internals.asks_for_login(scope) and internals.login_of(internals.Request(scope)) == ""
    answer = client.post("/login", data={"username": "ada", "password": PASSWORD})
    cookies = "; ".join(f"{name}={value}" for name, value in answer.cookies.items())

    def login(cookie: str) -> str:
        scope = {"type": "http", "headers": [(b"cookie", cookie.encode())], "app": client.app}
        assert internals.asks_for_login(scope)
        return internals.login_of(internals.Request(scope))

    assert (login(cookies), login(cookies.replace("=", "=x")), login("")) == ("ada", "", "")


def test_events_are_found_by_number_and_by_name() -> None:
    page = page_with(lambda value: value, gr.Textbox())
    (number,) = page.fns
    event = internals.find_event(page, number, "")
    assert event is internals.find_event(page, None, "press")
    assert len(event.inputs) == 1 and event.fn is not None
    assert internals.find_event(page, 99, "press") is internals.find_event(page, None, "other") is None
    scope = {"app": client_of(page).app}
    assert internals.page_of(scope) is page


@pytest.mark.parametrize(
    ("pattern", "method", "path"),
    [
        (internals.EVENT, "POST", "queue/join"),
        (internals.EVENT, "POST", "call/press"),
        (internals.EVENT, "POST", "call/v2/press"),
        (internals.UNQUEUED_EVENT, "POST", "run/press"),
        (internals.UNQUEUED_EVENT, "POST", "api/press"),
        (internals.ANSWER, "GET", "queue/data"),
    ],
)
def test_gradio_has_the_addresses_that_are_checked(pattern: re.Pattern[str], method: str, path: str) -> None:
    client = client_of(page_with(lambda: None))
    body: Any = {"json": {}} if method == "POST" else {}
    assert pattern.match(f"/gradio_api/{path}")
    assert client.request(method, f"/gradio_api/{path}", **body).status_code in (200, 400, 422)
    assert client.request(method, "/gradio_api/nothing", **body).status_code == 404


def test_of_gradios_addresses_those_are_open_that_are_needed() -> None:
    documented = gr.routes.App.create_app(gr.Blocks()).openapi()["paths"]
    open_paths = {path for path in (re.sub(r"{[^}]*}", "7", path) for path in documented) if is_open(path)}
    assert {path.rstrip("/") for path in open_paths} == {
        *("", "/config", "/login", "/logout", "/theme.css", "/robots.txt", "/favicon.ico"),
        *("/manifest.json", "/assets/7", "/static/7", "/svelte/7"),
        *(
            f"/gradio_api/{path}"
            for path in (
                *("info", "openapi.json", "app_id", "login_check", "startup-events", "theme.css", "upload"),
                *("upload_progress", "file=7", "queue/join", "queue/data", "queue/status", "cancel", "reset"),
                *("call/7", "call/7/7", "call/v2/7", "call/v2/7/7", "run/7", "api/7", "heartbeat/7"),
            )
        ),
    }


def is_open(path: str) -> bool:
    return internals.OPEN.fullmatch(path) is not None


def test_icons_are_open_in_the_two_sizes_of_the_manifest() -> None:
    assert is_open("/pwa_icon/192")
    assert is_open("/pwa_icon/512")
    assert not any(map(is_open, ("/pwa_icon", "/pwa_icon/0", "/pwa_icon/40000", "/a\n")))


def test_messages_for_a_tab_that_is_gone_are_dropped() -> None:
    page = page_with(lambda: None)
    page.queue()
    event = SimpleNamespace(session_hash="gone", alive=True, _id="a")
    with pytest.raises(KeyError):
        page._queue.send_message(event, SimpleNamespace())  # type: ignore[arg-type]
    internals.drop_messages_for_lost_tabs(page)
    page._queue.send_message(event, SimpleNamespace())  # type: ignore[arg-type]


def test_the_queue_computes_no_statistics() -> None:
    assert inspect.getsource(Queue.process_events).count("self.compute_analytics_summary,") == 2
    page = page_with(lambda: None)
    page.queue()
    page._queue.events_recorded = 1
    event = {"function": "press", "status": "success", "process_time": 1.0}
    assert page._queue.compute_analytics_summary([event])["functions"]
    internals.skip_statistics(page)
    assert page._queue.compute_analytics_summary([event]) == {}


def test_an_answer_is_lost_unless_its_event_waits() -> None:
    page = page_with(lambda: None)
    with client_of(page) as client:
        assert internals.is_answer_lost(page, "/gradio_api/queue/data", "tab")
        assert internals.ANSWER.fullmatch("/gradio_api/call/press/none")
        assert internals.is_answer_lost(page, "/gradio_api/call/press/none", None)
        with pytest.raises(RuntimeError):  # or else the check is not needed any more
            client.get("/gradio_api/call/press/none")
        event = client.post("/gradio_api/call/press", json={"data": []}).json()["event_id"]
        assert not internals.is_answer_lost(page, f"/gradio_api/call/press/{event}", None)
        (number,) = page.fns
        body = {"data": [], "fn_index": number, "session_hash": "tab"}
        client.post("/gradio_api/queue/join", json=body).raise_for_status()
        assert not internals.is_answer_lost(page, "/gradio_api/queue/data", "tab")


def test_launch_still_has_the_option_that_spares_the_look_at_the_page() -> None:
    assert internals.LAUNCH.keys() <= inspect.signature(gr.Blocks.launch).parameters.keys()


def test_agents_are_answered_by_the_function_that_is_set() -> None:
    with gr.Blocks() as page:
        gr.Button()
    internals.set_tool_answers(page, lambda types, data, root: [])  # no tools: nothing happens
    page.mcp_server_obj = SimpleNamespace(types="types")
    internals.set_tool_answers(page, lambda types, data, root: [types, data, root])
    answer = page.mcp_server_obj.postprocess_output_data
    assert answer([1], "http://there") == ["types", [1], "http://there"]
    source = (Path(gr.__file__).parent / "mcp.py").read_text(encoding="utf-8")
    assert "self.postprocess_output_data(output_data, root_url)" in source
    assert "self.types.ImageContent(" in source
