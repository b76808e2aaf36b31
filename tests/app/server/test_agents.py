"""What an agent gets of an endpoint's answer."""

import base64
import json
from pathlib import Path
from types import SimpleNamespace

from app.server.api import tool_answer

TYPES = SimpleNamespace(
    ImageContent=lambda **values: SimpleNamespace(**values),
    TextContent=lambda **values: SimpleNamespace(**values),
)


def test_agents_get_pictures_and_addresses_instead_of_paths(tmp_path: Path) -> None:
    path = tmp_path / "a lake.png"
    path.write_bytes(b"a PNG")
    file = {"path": str(path), "url": None, "meta": {"_type": "gradio.FileData"}}
    picture, text = tool_answer(TYPES, [[[file], [{"seed": 7}]]], "http://there/preview/")
    assert base64.b64decode(picture.data) == b"a PNG"
    assert picture.mimeType == "image/png"
    ((addresses, records),) = json.loads(text.text)
    assert addresses[0].startswith("http://there/preview/gradio_api/file=")
    assert " " not in addresses[0]
    assert records == [{"seed": 7}]


def test_what_has_no_pictures_is_told_as_it_is() -> None:
    (text,) = tool_answer(TYPES, [{"prompt": "Wälder"}], "http://there")
    assert text.text == '[{"prompt": "Wälder"}]'
