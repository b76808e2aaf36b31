"""Malformed events are refused with a message."""

import gradio as gr
import pytest

from app.server.events import problem_of


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"data": [NaN]}', "not JSON"),
        (b'{"data": ["\\ud800"]}', "not JSON"),
        (b"[]", "an object"),
        (b'{"data": [], "session_hash": "a b", "fn_index": 0}', "session_hash"),
        (b'{"data": [], "session_hash": "a", "fn_index": 99}', "no function"),
        (b'{"data": [], "session_hash": "a", "fn_index": true}', "no function"),
        (b'{"data": [], "fn_index": 0}', "are missing"),
        (b'{"data": {}, "session_hash": "a", "fn_index": 0}', "must be a list"),
    ],
)
def test_events_without_their_form_are_refused_with_a_message(body: bytes, words: str) -> None:
    with gr.Blocks() as page:
        gr.Button().click(lambda: None, api_name="press")
    assert words in problem_of(body, page, "/gradio_api/queue/join")
    right = b'{"data": [], "session_hash": "a", "fn_index": 0}'
    assert problem_of(right, page, "/gradio_api/queue/join") == ""
    assert problem_of(b'{"data": []}', page, "/gradio_api/call/press") == ""
    assert "no such endpoint" in problem_of(b'{"data": []}', page, "/gradio_api/call/other")
    assert "must have 0 values" in problem_of(b'{"data": [1]}', page, "/gradio_api/run/press")


def test_events_with_too_few_values_are_refused_with_a_message() -> None:
    def preview(prompt: str, seed: int = 1) -> str:
        return f"{prompt} {seed}"

    with gr.Blocks() as page:
        gr.api(preview, api_name="preview")

    def wrong(body: bytes, path: str) -> str:
        return problem_of(body, page, f"/gradio_api/{path}")

    words = wrong(b'{"data": ["a lake"]}', "call/preview")
    assert words.startswith("data must have 2 values, not 1. At /gradio_api/call/v2/preview")
    assert wrong(b'{"data": ["a lake", 7]}', "call/preview") == ""
    assert wrong(b'{"prompt": "a lake"}', "call/v2/preview") == ""
    assert wrong(b"{}", "call/v2/preview/") == "The argument prompt is missing."
    unknown = wrong(b'{"prompt": "a lake", "sede": 1}', "call/v2/preview")
    assert unknown == "There is no argument 'sede'. There are: prompt, seed."
    assert "no such endpoint" in wrong(b"{}", "call/v2/other")
