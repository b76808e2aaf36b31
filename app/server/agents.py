"""Answers for agents, by the Model Context Protocol: the pictures themselves, and how they were made."""

import json
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.page.gradio_internals import encode_file_path, is_file_obj_with_meta, traverse


def tool_answer(types: Any, data: Any, root_url: str) -> list[Any]:
    """Return each PNG of an endpoint's outputs, and then all as JSON with addresses in place of files.

    Args:
        types: the module `mcp.types`.
        data: the endpoint's outputs.
        root_url: the app's address as the agent sees it.
    """
    pictures: list[Any] = []

    def address(file: Mapping[str, Any]) -> str:
        picture = b64encode(Path(file["path"]).read_bytes()).decode()
        pictures.append(types.ImageContent(type="image", data=picture, mimeType="image/png"))
        return f"{root_url.rstrip('/')}/gradio_api/file={encode_file_path(file['path'])}"

    text = json.dumps(traverse(data, address, is_file_obj_with_meta), ensure_ascii=False)
    return [*pictures, types.TextContent(type="text", text=text)]
