"""What sites read of the page that show a link to it."""

import io
import re

import httpx
from PIL import Image

from app.server.head import with_head
from tests.conftest import Served


def told(html: str) -> dict[str, list[str]]:
    """What the head says, by the name of a tag's property."""
    head = html.partition("</head>")[0]
    found: dict[str, list[str]] = {}
    for name, content in re.findall(r'<meta\s+(?:property|name)="([^"]+)"\s+content="([^"]*)"', head):
        found.setdefault(name, []).append(content)
    return found


def test_the_head_names_the_app_and_its_card_once_and_wholly(served: Served) -> None:
    answer = httpx.get(served.url)
    assert int(answer.headers["content-length"]) == len(answer.content)
    head = told(answer.text)
    assert head["og:title"] == ["Diffusion Preview"]
    assert head["og:image"] == [f"{served.url}card.png"]
    assert "radio" not in str(head)
    card = Image.open(io.BytesIO(httpx.get(head["og:image"][0]).content))
    assert (card.size, card.format) == ((1200, 630), "PNG")


def test_addresses_are_those_that_a_proxy_is_found_under_and_no_html(served: Served) -> None:
    proxied = {"X-Forwarded-Host": "pictures.example", "X-Forwarded-Proto": "https"}
    head = told(httpx.get(served.url, headers=proxied).text)
    assert head["og:url"] == ["https://pictures.example/"]
    forged = httpx.get(served.url, headers={"X-Forwarded-Host": '"><script>x()</script>'})
    assert "<script>x()" not in forged.text


def test_of_the_page_only_what_gradio_says_of_itself_is_replaced() -> None:
    body = '<meta name="twitter:x">'
    html = '<head><meta property="og:title"\n content="Gradio" /><title>a</title></head>' + body
    assert with_head(html, "<b>") == "<head><title>a</title><b></head>" + body
