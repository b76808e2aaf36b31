"""Texts of other programs, wherever a file has them."""

import io
import json
import struct
import time
import zlib
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from app.jobs import container, metadata

TEXT = "a hill at noon\nNegative prompt: fog\nSteps: 6, Sampler: UniPC, CFG scale: 5, Seed: 12, Size: 256x256"


def file_of(kind: str = "PNG", **save: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "teal").save(buffer, kind, **save)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


PLAIN = file_of()
PIXELS, END = PLAIN.index(b"IDAT") - 4, PLAIN.index(b"IEND") - 4


def with_chunk(added: bytes, at: int = PIXELS) -> bytes:
    return PLAIN[:at] + added + PLAIN[at:]


def with_texts(**texts: Any) -> bytes:
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_itxt(name.replace("_", "-") if name == "sd_metadata" else name, text)
    return file_of(pnginfo=info)


def comment_of(data: bytes, order: str = ">") -> bytes:
    """EXIF with a UserComment."""
    mark = b"MM\0*" if order == ">" else b"II*\0"
    main = struct.pack(f"{order}IHHHIII", 8, 1, 0x8769, 4, 1, 26, 0)
    return mark + main + struct.pack(f"{order}HHHIII", 1, 0x9286, 7, len(data), 44, 0) + data


UTF16 = b"UNICODE\0" + TEXT.encode("utf-16-be")
PLACES = {
    "tEXt": with_chunk(chunk(b"tEXt", b"parameters\0" + TEXT.encode())),
    "tEXt after the pixels": with_chunk(chunk(b"tEXt", b"parameters\0" + TEXT.encode()), END),
    "zTXt": with_chunk(chunk(b"zTXt", b"parameters\0\0" + zlib.compress(TEXT.encode()))),
    "iTXt": with_chunk(chunk(b"iTXt", b"parameters\0\0\0en\0x\0" + TEXT.encode())),
    "iTXt compressed, after": with_chunk(
        chunk(b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(TEXT.encode())), END
    ),
    "PNG, EXIF": with_chunk(chunk(b"eXIf", comment_of(UTF16))),
    "PNG, EXIF after": with_chunk(chunk(b"eXIf", comment_of(UTF16, "<")), END),
    "JPEG": file_of("JPEG", exif=b"Exif\0\0" + comment_of(UTF16)),
    "JPEG, little": file_of(
        "JPEG", exif=b"Exif\0\0" + comment_of(b"UNICODE\0" + TEXT.encode("utf-16-le"), "<")
    ),
    "JPEG, ASCII": file_of("JPEG", exif=b"Exif\0\0" + comment_of(b"ASCII\0\0\0" + TEXT.encode())),
    "JPEG, no code": file_of("JPEG", exif=b"Exif\0\0" + comment_of(TEXT.encode())),
    "WebP": file_of("WEBP", exif=comment_of(UTF16)),
    "WebP, UTF-8": file_of("WEBP", exif=comment_of(bytes(8) + TEXT.encode())),
}


@pytest.mark.parametrize("place", PLACES)
def test_the_text_is_found_wherever_it_stands(place: str) -> None:
    read = metadata.read(PLACES[place])
    assert (read.prompt, read.negative_prompt, read.settings["Seed"]) == ("a hill at noon", "fog", "12")


def test_utf8_in_a_latin1_chunk_is_understood_and_so_is_latin1() -> None:
    for encoding in ("utf-8", "latin-1"):
        data = with_chunk(chunk(b"tEXt", b"parameters\0" + TEXT.replace("hill", "café").encode(encoding)))
        assert metadata.read(data).prompt == "a café at noon"


GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {"seed": ["9", 0], "steps": 20, "cfg": 7.5, "sampler_name": "euler", "scheduler": "normal"}
        | {
            "denoise": 1.0,
            "model": ["4", 0],
            "positive": ["8", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["10", 0], "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "fog", "clip": ["4", 1]}},
    "8": {
        "class_type": "ConditioningCombine",
        "inputs": {"conditioning_1": ["6", 0], "conditioning_2": ["8", 0]},
    },
    "9": {"class_type": "PrimitiveInt", "inputs": {"value": 1234}},
    "10": {"class_type": "PrimitiveString", "inputs": {"value": "a hill at noon"}},
    "12": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 5,
            "steps": 8,
            "cfg": 2,
            "sampler_name": "ddim",
            "denoise": 0.4,
            "positive": ["6", 0],
        }
        | {"latent_image": ["3", 0]},
    },
}
FLUX = {
    "1": {
        "class_type": "SamplerCustomAdvanced",
        "inputs": {
            "noise": ["2", 0],
            "guider": ["3", 0],
            "sampler": ["4", 0],
            "sigmas": ["5", 0],
            "latent_image": ["6", 0],
        },
    },
    "2": {"class_type": "RandomNoise", "inputs": {"noise_seed": 1234}},
    "3": {"class_type": "BasicGuider", "inputs": {"model": ["9", 0], "conditioning": ["7", 0]}},
    "4": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
    "5": {"class_type": "BasicScheduler", "inputs": {"steps": 20, "denoise": 1, "scheduler": "simple"}},
    "6": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 512, "height": 768}},
    "7": {"class_type": "FluxGuidance", "inputs": {"guidance": 7.5, "conditioning": ["8", 0]}},
    "8": {"class_type": "CLIPTextEncode", "inputs": {"text": "a hill at noon"}},
    "9": {"class_type": "UNETLoader", "inputs": {"unet_name": "x.safetensors"}},
}
WORKFLOW = {
    "nodes": [
        {
            "id": 3,
            "type": "KSampler",
            "widgets_values": [1234, "randomize", 20, 7.5, "euler", "normal", 1],
            "inputs": [
                {"name": name, "link": link}
                for name, link in (
                    ("model", 1),
                    ("positive", 4),
                    ("negative", 6),
                    ("latent_image", 2),
                    ("x", None),
                )
            ],
        },
        {"id": 4, "type": "CheckpointLoaderSimple", "widgets_values": ["x.safetensors"]},
        {"id": 5, "type": "EmptyLatentImage", "widgets_values": [512, 768, 1], "inputs": []},
        {
            "id": 6,
            "type": "CLIPTextEncode",
            "inputs": [{"name": "clip", "link": 3}, {"name": "text", "link": 7}],
        },
        {
            "id": 7,
            "type": "CLIPTextEncode",
            "widgets_values": ["fog"],
            "inputs": [{"name": "clip", "link": 5}],
        },
        {"id": 8, "type": "PrimitiveNode", "widgets_values": ["a hill at noon", "fixed"]},
        {"id": 9, "type": "Note", "widgets_values": {"text": "no list"}},
    ],
    "links": [
        [1, 4, 0, 3, 0, "MODEL"],
        [2, 5, 0, 3, 3, "LATENT"],
        [3, 4, 1, 6, 0, "CLIP"],
        [4, 6, 0, 3, 1, "CONDITIONING"],
        [5, 4, 1, 7, 0, "CLIP"],
        [6, 7, 0, 3, 2, "CONDITIONING"],
        [7, 8, 0, 6, 1, "STRING"],
    ],
}
FLAT = {"prompt": "a hill at noon", "steps": 20, "seed": 1234}
PROGRAMS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "ComfyUI": ({"prompt": GRAPH}, {"Sampler": "euler", "Model": "x.safetensors"}),
    "ComfyUI, both": (
        {"workflow": {"nodes": [], "links": []}, "prompt": GRAPH},
        {"Sampler": "euler", "Model": "x.safetensors"},
    ),
    "ComfyUI, workflow": ({"workflow": WORKFLOW}, {"Sampler": "euler", "Model": "x.safetensors"}),
    "ComfyUI, Flux": ({"prompt": FLUX}, {"Sampler": "euler", "Model": "x.safetensors"}),
    "Fooocus": (
        {
            "parameters": FLAT
            | {"negative_prompt": "fog", "guidance_scale": 7.5, "seed": "1234", "resolution": "(512, 768)"}
            | {"sampler": "euler", "base_model": "x"},
            "fooocus_scheme": "fooocus",
        },
        {"Sampler": "euler", "Model": "x"},
    ),
    "SwarmUI": (
        {
            "parameters": {
                "sui_image_params": FLAT
                | {"negativeprompt": "fog", "cfgscale": 7.5, "width": 512, "height": 768, "model": "x"},
                "sui_extra_data": {"date": "2024"},
            }
        },
        {"Model": "x"},
    ),
    "InvokeAI 3": (
        {
            "invokeai_metadata": {
                "positive_prompt": "a hill at noon",
                "negative_prompt": "fog",
                **{
                    "steps": 20,
                    "seed": 1234,
                    "cfg_scale": 7.5,
                    "width": 512,
                    "height": 768,
                    "scheduler": "euler",
                },
                "model": {"name": "x", "base": "sd-1"},
            }
        },
        {"Sampler": "euler", "Model": "x"},
    ),
    "InvokeAI 2": (
        {
            "sd_metadata": {
                "model_weights": "x",
                "image": {"prompt": [{"prompt": "a hill at noon [fog]", "weight": 1}], "sampler": "k_euler"}
                | {"steps": 20, "seed": 1234, "cfg_scale": 7.5, "width": 512, "height": 768},
            }
        },
        {"Sampler": "k_euler", "Model": "x"},
    ),
    "InvokeAI 1": (
        {"Dream": '"a hill at noon [fog]" -s 20 -S 1234 -W 512 -H 768 -C 7.5 -A k_euler'},
        {"Sampler": "k_euler"},
    ),
    "NovelAI": (
        {
            "Software": "NovelAI",
            "Description": "a hill at noon",
            "Comment": FLAT | {"uc": "fog", "scale": 7.5, "width": 512, "height": 768, "sampler": "k_euler"},
        },
        {"Sampler": "k_euler"},
    ),
    "NovelAI 4": (
        {
            "Comment": {"seed": 1234, "steps": 20, "scale": 7.5, "width": 512, "height": 768}
            | {"v4_prompt": {"caption": {"base_caption": "a hill at noon", "char_captions": []}}}
            | {"v4_negative_prompt": {"caption": {"base_caption": "fog"}}},
        },
        {},
    ),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_other_programs_write_is_read(program: str) -> None:
    texts, more = PROGRAMS[program]
    written = {name: text if isinstance(text, str) else json.dumps(text) for name, text in texts.items()}
    read = metadata.read(with_texts(**written))
    assert read.prompt == "a hill at noon"
    assert read.negative_prompt == ("" if "Flux" in program else "fog")
    usual = {"Steps": "20", "Seed": "1234", "CFG scale": "7.5", "Size": "512x768"}
    assert read.settings == usual | more


def test_json_in_a_comment_is_read_as_well() -> None:
    text = json.dumps({"sui_image_params": {"prompt": "a hill", "seed": 3}})
    data = file_of("JPEG", exif=b"Exif\0\0" + comment_of(b"UNICODE\0" + text.encode("utf-16-be")))
    assert metadata.read(data).prompt == "a hill"
    graph = f"prompt:{json.dumps(GRAPH)}".encode() + b"\0"
    main = struct.pack(">IHHHIII", 8, 1, 0x0110, 2, len(graph), 26, 0)
    assert metadata.read(file_of("WEBP", exif=b"MM\0*" + main + graph)).settings["Seed"] == "1234"


@pytest.mark.parametrize("name", metadata.PROGRAMS)
@pytest.mark.parametrize(
    "text", ['{"a": 1}', '{"a":', "[" * 100_000, '{"a": ' * 100_000, "{" + "1" * 2_000_000]
)
def test_what_cannot_be_read_is_named(name: str, text: str) -> None:
    if name in ("Description", "Dream") or (name in ("parameters", "prompt", "Comment") and text[0] == "["):
        text = ""
    with pytest.raises(metadata.Unreadable, match=name):
        metadata.read(with_texts(Software="NovelAI", **{name: text}))


def test_a_damaged_text_is_named_and_another_one_is_read() -> None:
    text = chunk(b"tEXt", b"parameters\0" + TEXT.encode())
    damaged = with_chunk(text[:-1] + bytes([text[-1] ^ 1]))
    with pytest.raises(metadata.Unreadable, match=r"parameters.*damaged"):
        metadata.read(damaged)
    novelai = chunk(b"tEXt", b'Comment\0{"prompt": "a lake"}')
    assert metadata.read(damaged[:PIXELS] + novelai + damaged[PIXELS:]).prompt == "a lake"
    bomb = with_chunk(chunk(b"zTXt", b"parameters\0\0" + zlib.compress(bytes(100_000_000), 1)))
    with pytest.raises(metadata.Unreadable, match=r"parameters.*too large"):
        metadata.read(bomb)


def test_a_photo_says_nothing() -> None:
    for data in (
        PLAIN,
        file_of("JPEG"),
        file_of("JPEG", exif=b"Exif\0\0" + comment_of(b"ASCII\0\0\0Grandma at noon")),
    ):
        with pytest.raises(ValueError, match="does not say") as caught:
            metadata.read(data)
        assert not isinstance(caught.value, metadata.Unreadable)


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", PLAIN[:30], b"\x89PNG\r\n\x1a\n" + b"0" * 50, b"\xff\xd8\xff\xe1"]
)
def test_broken_files_say_nothing(data: bytes) -> None:
    with pytest.raises(ValueError, match="does not say"):
        metadata.read(data)


KEYS = ["3", "inputs", "class_type", "steps", "positive", "negative", "guider", "sigmas", "prompt", "image"]
KEYS += ["nodes", "links", "link", "id", "type", "widgets_values", "name"]
KEYS += ["sui_image_params", "v4_prompt", "caption", "text", "seed", "width", "height", "size", "model"]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["3", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@options(max_examples=300, deadline=None)
@given(st.sampled_from(list(metadata.PROGRAMS)), JSON.map(json.dumps) | st.text() | st.binary().map(repr))
def test_any_text_is_read_or_named(name: str, text: str) -> None:
    with suppress(metadata.Unreadable):
        read = metadata.read(with_texts(Software="NovelAI", **{name: text}))
        assert all(
            isinstance(value, str) for value in (read.prompt, read.negative_prompt, *read.settings.values())
        )


@options(max_examples=300, deadline=None)
@given(
    st.sampled_from(list(PLACES)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=6)), max_size=6),
)
def test_any_bytes_raise_nothing_but_the_plain_error(place: str, changes: list[tuple[float, bytes]]) -> None:
    data = bytearray(PLACES[place])
    for where, other in changes:
        at = int(where * len(data))
        data[at : at + len(other)] = other
    with suppress(ValueError):
        metadata.read(bytes(data))


@options(max_examples=200, deadline=None)
@given(
    st.sampled_from([b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf"]),
    st.sampled_from([b"", b"parameters\0", b"MM\0*", b"Raw profile type exif\0\nexif\n9\n"]),
    st.binary(),
)
def test_any_bytes_in_a_chunk_leave_the_pixels_alone(kind: bytes, head: bytes, body: bytes) -> None:
    parts = container.split(with_chunk(chunk(kind, head + body)))
    assert parts.pixels == PLAIN


def test_files_built_to_take_time_take_none() -> None:
    entry = struct.pack(">HHII", 0x9286, 7, 2**21, 0)
    exif = b"MM\0*" + struct.pack(">IH", 8, 60_000) + entry * 60_000 + bytes(2**21)
    files = [
        with_chunk(chunk(b"eXIf", exif)),
        with_chunk(chunk(b"tEXt", b"parameters\0") * 90_000),
        b"\xff\xd8" + b"\xff" * 10_000_000,
        b"\xff\xd8" + b"\xff\xe1\0\2" * 90_000,
        file_of("WEBP")[:12] + b"XMP \0\0\0\0" * 1_000_000,
    ]
    for data in files:
        began = time.perf_counter()
        with suppress(ValueError):
            metadata.read(data)
        assert time.perf_counter() - began < 2
