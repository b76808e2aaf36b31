"""Whatever a model's files hold instead of their header or their JSON, it is told soon and in plain words."""

import json
import resource
import struct
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.catalogue import ModelError
from app.catalogue.files import MAX_JSON_BYTES, count, parse_json, read_header, read_index, weight_files

MB = 2**20
GOOD = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.sampled_from(list(GOOD)), inner)
    ),
    max_leaves=8,
)


def safetensors(path: Path, header: bytes, data: int = 24) -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(data))
    return path


LARGE = {
    "nested lists": lambda: b"[" * (90 * MB),
    "nested objects": lambda: b'{"a":' * (15 * MB // 5),
    "nested in a tensor": lambda: b'{"a":{"shape":' + b"[" * (15 * MB),
    "closed": lambda: b"[" * (7 * MB) + b"]" * (7 * MB),
    "many lists": lambda: b"[" + b"[]," * (5 * MB) + b"[]]",
    "many numbers": lambda: b'{"a":{"shape":[' + b"1," * (7 * MB) + b"1]}}",
    "an open string": lambda: b'{"' + b'\\"' * (7 * MB),
    "many quotes": lambda: b'"' * (15 * MB + 1),
    "backslashes": lambda: b'{"a' + b"\\" * (15 * MB + 1),
    "a long number": lambda: b'{"a":' + b"9" * (15 * MB) + b"}",
    "zeros": lambda: bytes(15 * MB),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_large_malformed_header_is_refused_in_bounded_time_and_memory(tmp_path: Path, name: str) -> None:
    path = safetensors(tmp_path / "model.safetensors", LARGE[name]())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    with pytest.raises(ModelError, match="not a safetensors file"):
        read_header(path)
    assert time.process_time() - began < 5
    if sys.platform == "linux":
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 200


@settings(deadline=None, max_examples=100)
@given(value=ANY_JSON)
def test_any_json_as_a_header_or_as_a_tensor_is_read_or_refused(tmp_path_factory: Any, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    for header in (
        value,
        {"a": value},
        {"a": GOOD | {"shape": value}},
        {"a": GOOD | {"data_offsets": value}},
    ):
        safetensors(path, json.dumps(header).encode())
        try:
            assert count(read_header(path)) >= 0
        except ModelError as error:
            assert "Download it again" in str(error)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [-1]}, {"shape": [1.5]}, {"shape": [True]}, {"shape": "12"}, {"shape": [2**64]},
        {"shape": [1] * 100}, {"data_offsets": [0]}, {"data_offsets": [0, "24"]}, {"dtype": 7},
    ],
)  # fmt: skip
def test_a_tensor_of_impossible_shape_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = safetensors(tmp_path / "a.safetensors", json.dumps({"a": GOOD | change}).encode())
    with pytest.raises(ModelError, match="not a safetensors file"):
        read_header(path)


def test_large_headers_of_real_kinds_are_read(tmp_path: Path) -> None:
    name = 'model.layers[12]{x}."q\\u00e9" '
    header: dict[str, Any] = {f"{name}{number}": GOOD for number in range(50_000)}
    header["__metadata__"] = {"note": "[{" * 100_000}
    assert len(read_header(safetensors(tmp_path / "a.safetensors", json.dumps(header).encode()))) == 50_000


DEEP = "[" * 100_000 + "]" * 100_000
UNREADABLE = ["", "{", DEEP, '{"_class_name": ' + DEEP + "}", "9" * 5000, "\x00", " " * (MAX_JSON_BYTES + 1)]


@pytest.mark.parametrize("text", UNREADABLE, ids=range(len(UNREADABLE)))
def test_an_index_that_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(ModelError, match="Download it again"):
        read_index(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match="can't be read"):
        weight_files(tmp_path)


@settings(deadline=None)
@given(value=ANY_JSON)
def test_any_json_as_an_index_is_read_or_refused(tmp_path_factory: Any, value: Any) -> None:
    folder = tmp_path_factory.getbasetemp()
    for index in (value, {"weight_map": value}, {"weight_map": {"a": value}}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ModelError):
            weight_files(folder)


@given(value=ANY_JSON)
def test_bounded_parsing_is_parsing(value: Any) -> None:
    assert parse_json(json.dumps(value).encode()) == value
