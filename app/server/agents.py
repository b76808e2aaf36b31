"""What agents get, by the Model Context Protocol: the pictures themselves, and how they were made.

Gradio shows a picture to an agent only where it is the whole of an output, and else says where the file lies
here, which is of no use elsewhere.
"""

import json
from base64 import b64encode
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio_client.utils import encode_file_path, is_file_obj_with_meta, traverse


def show_pictures(page: gr.Blocks) -> None:
    """Have the tools of a launched page, where it has any, answer as `content` does."""
    server = page.mcp_server_obj
    if server:
        server.postprocess_output_data = partial(content, server.types)  # type: ignore[method-assign]


def content(types: Any, data: Any, root_url: str) -> list[Any]:
    """An endpoint's answer for an agent: each PNG, and the rest as JSON with addresses in place of files.

    types: of the protocol. data: the endpoint's outputs. root_url: where the agent finds the app.
    """
    pictures: list[Any] = []

    def address(file: Mapping[str, Any]) -> str:
        picture = b64encode(Path(file["path"]).read_bytes()).decode()
        pictures.append(types.ImageContent(type="image", data=picture, mimeType="image/png"))
        return f"{root_url.rstrip('/')}/gradio_api/file={encode_file_path(file['path'])}"

    said = json.dumps(traverse(data, address, is_file_obj_with_meta), ensure_ascii=False)
    return [*pictures, types.TextContent(type="text", text=said)]
