"""Texts of other programs, wherever a file has them."""

import io
import json
import struct
import time
import zlib
from contextlib import suppress
from typing import Any
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from app.jobs import container, metadata, xmp

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
    "JPEG, no code, byte order": file_of("JPEG", exif=b"Exif\0\0" + comment_of(TEXT.encode("utf-16"))),
    "JPEG, comment": file_of("JPEG", comment=TEXT.encode()),
    "AVIF": file_of("AVIF", exif=comment_of(UTF16)),
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


def xmp_of(**properties: str) -> bytes:
    """XMP with these properties, as programs write it."""
    inner = "".join(
        f"<p:{name}><rdf:Alt><rdf:li>{escape(text)}</rdf:li><rdf:li>no</rdf:li></rdf:Alt></p:{name}>"
        for name, text in properties.items()
    )
    return (
        '<?xpacket begin="" id="x"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:p="http://purl.org/dc/elements/1.1/">'
        f'<rdf:Description rdf:about="" p:CreatorTool="Draw Things">{inner}</rdf:Description>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


DRAW_THINGS = {
    **{"c": "a hill at noon", "uc": "fog", "seed": 12, "steps": 6, "scale": 5, "size": "256x256"},
    **{"sampler": "UniPC", "strength": 1.0, "lora": [{"model": "x"}], "v2": {"seed": 12}},
}
DESCRIBED = "a hill at noon\n-fog\nSteps: 6, Sampler: UniPC, Guidance Scale: 5.0, Seed: 12, Size: 256x256"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize(
    "properties",
    [{"UserComment": json.dumps(DRAW_THINGS)}, {"description": DESCRIBED}, {"description": TEXT}],
)
def test_xmp_is_read_in_every_kind_of_file(kind: str, properties: dict[str, str]) -> None:
    written = xmp_of(**properties)
    png = with_texts(**{"XML:com.adobe.xmp": written.decode()})
    read = metadata.read(png if kind == "PNG" else file_of(kind, xmp=written))
    assert (read.prompt, read.negative_prompt, read.settings["Seed"]) == ("a hill at noon", "fog", "12")
    assert float(read.settings["CFG scale"]) == 5 and "Denoising strength" not in read.settings
    assert read.unused == (("lora",) if "UserComment" in properties else ())


def test_xmp_in_attributes_is_read_as_well() -> None:
    written = xmp_of().replace(b'CreatorTool="', b'UserComment="a hill&#10;Steps: 6, Seed: 12" p:other="')
    assert metadata.read(file_of("JPEG", xmp=written)).settings["Seed"] == "12"


def test_xmp_that_cannot_be_read_is_named_and_that_of_a_camera_is_not() -> None:
    entity = b'<!DOCTYPE x [<!ENTITY a "aaaa">]><x xmlns:p="p"><p:UserComment>&a;</p:UserComment></x>'
    for broken in (xmp_of()[:200], entity, b"<a>" * 1000, xmp_of() + b" " * 50 + b"<", b"\xff\xfe\0"):
        with pytest.raises(metadata.Unreadable, match="“XMP”: damaged or too large"):
            metadata.read(file_of("JPEG", xmp=broken))
    with pytest.raises(metadata.Unreadable, match=r"XMP.*damaged or too large"):
        metadata.read(with_texts(**{"XML:com.adobe.xmp": xmp_of(description="x" * xmp.MAX_BYTES).decode()}))
    with pytest.raises(metadata.Unreadable, match="“XMP description”: “Grandma at noon”"):
        metadata.read(file_of("JPEG", xmp=xmp_of(description="Grandma at noon")))
    with pytest.raises(ValueError, match="does not say"):
        metadata.read(file_of("JPEG", xmp=xmp_of()))


@pytest.mark.parametrize(
    "piece", [b"<p:a>", b"<rdf:li>", b"<rdf:li> </rdf:li>", b"<p:a/>", b" ", b"&amp;", b"x='1' "]
)
def test_xmp_takes_linear_time(piece: bytes) -> None:
    whole = xmp_of(description="-")

    def seconds(size: int) -> float:
        written, best = whole.replace(b"-</rdf:li>", piece * (size // len(piece))), float("inf")
        for _ in range(2):
            began = time.process_time()
            with suppress(ValueError):
                xmp.read_xmp(written)
            best = min(best, time.process_time() - began)
        return best

    assert seconds(800_000) < 8 * seconds(200_000) + 0.05  # quadratic time would grow to 16 times as much


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
WORKFLOW: dict[str, list[Any]] = {
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


PROGRAMS |= {
    "Easy Diffusion": (
        {"prompt": "a hill at noon", "negative_prompt": "fog", "seed": "1234", "num_inference_steps": "20"}
        | {"guidance_scale": "7.5", "width": "512", "height": "768", "sampler_name": "euler"}
        | {"use_stable_diffusion_model": "x"},
        {"Sampler": "euler", "Model": "x"},
    ),
    "Easy Diffusion, labels": (
        {"Prompt": "a hill at noon", "Negative Prompt": "fog", "Seed": "1234", "Steps": "20"}
        | {"Guidance Scale": "7.5", "Width": "512", "Height": "768", "Stable Diffusion model": "x"},
        {"Model": "x"},
    ),
    "Stability Matrix": (
        {
            "parameters-json": {"PositivePrompt": "a hill at noon", "NegativePrompt": "fog", "Steps": 20}
            | {
                "Sampler": "Euler",
                "CfgScale": 7.5,
                "Seed": 1234,
                "Height": 768,
                "Width": 512,
                "ModelName": "x",
            }
        },
        {"Sampler": "Euler", "Model": "x"},
    ),
    "Fooocus, log": (
        {
            "parameters": {"Prompt": "a hill at noon", "Negative Prompt": "fog", "Resolution": "(512, 768)"}
            | {"Guidance Scale": 7.5, "Steps": 20, "Seed": "1234", "Sampler": "euler", "Base Model": "x"}
        },
        {"Sampler": "euler", "Model": "x"},
    ),
    "InvokeAI 5": (
        {
            "invokeai_metadata": {
                "positive_prompt": "a hill at noon",
                "negative_prompt": "fog",
                "guidance": 7.5,
            }
            | {"width": 512, "height": 768, "seed": 1234, "steps": 20, "model": {"key": "k", "name": "x"}},
            "invokeai_graph": {"nodes": {}},
        },
        {"Model": "x"},
    ),
    "ComfyUI, wrapped": ({"prompt": {"prompt": GRAPH}}, {"Sampler": "euler", "Model": "x.safetensors"}),
}
# A pass over another one's noise; a seed two nodes away; a text behind a point in the wires, a bypassed node.
STAGES: dict[str, Any] = {
    **{name: node for name, node in GRAPH.items() if name not in ("3", "9", "12")},
    "1": {"class_type": "KSamplerAdvanced", "inputs": {"add_noise": "disable", "start_at_step": 12}},
    "2": {"class_type": "KSamplerAdvanced", "inputs": {"add_noise": "enable", "start_at_step": 0}},
    "8": {"class_type": "Reroute", "inputs": {"": ["6", 0]}},
    "9": {"class_type": "Seed (rgthree)", "inputs": {"seed": 1234}},
    "11": {"class_type": "Reroute", "inputs": {"": ["9", 0]}},
}
for _name, _cfg in (("1", 2), ("2", 7.5)):
    STAGES[_name]["inputs"] |= {"noise_seed": ["11", 0], "steps": 20, "cfg": _cfg, "sampler_name": "euler"}
    STAGES[_name]["inputs"] |= {"positive": ["8", 0], "negative": ["7", 0], "latent_image": ["5", 0]}
    STAGES[_name]["inputs"] |= {"model": ["4", 0]}
PROGRAMS["ComfyUI, stages"] = ({"prompt": STAGES}, {"Sampler": "euler", "Model": "x.safetensors"})
REROUTED = {
    "nodes": [
        *WORKFLOW["nodes"],
        {"id": 20, "type": "Reroute", "inputs": [{"name": "", "link": 21}]},
        {"id": 22, "type": "LoraLoader", "mode": 4, "widgets_values": ["y", 1],
         "inputs": [{"name": "m", "link": 24}]},
        {"id": 23, "type": "KSampler", "mode": 2, "widgets_values": [1, "fixed", 2, 3, "ddim", "normal", 1],
         "inputs": [{"name": "positive", "link": 6}]},
    ],
    "links": [
        *(link for link in WORKFLOW["links"] if link[0] not in (1, 4)),
        {"id": 4, "origin_id": 20, "origin_slot": 0, "target_id": 3},
        [21, 6, 0, 20, 0, "CONDITIONING"],
        [1, 22, 0, 3, 0, "MODEL"],
        [24, 4, 0, 22, 0, "MODEL"],
    ],
}  # fmt: skip
PROGRAMS["ComfyUI, rerouted"] = ({"workflow": REROUTED}, {"Sampler": "euler", "Model": "x.safetensors"})


@pytest.mark.parametrize(
    ("texts", "unused"),
    [
        ({"parameters": f"{TEXT}\nTemplate: a hill\n\nNegative Template: fog"},
         ("the text “Template: a hill”", "the text “Negative Template: fog”")),
        ({"parameters": TEXT, "workflow": "{}", "extras": "x", "Software": "y"},
         ("the text “workflow”", "the text “extras”")),
        ({"prompt": json.dumps(GRAPH | {"40": {"class_type": "LoraLoader", "inputs": {"lora_name": "x"}}})},
         ("the node LoraLoader", "1 more sampler")),
        ({"parameters": json.dumps(FLAT | {"styles": ["x"], "loras": [], "version": "1", "Clip Skip": 2})},
         ("Clip Skip", "styles")),
        ({"invokeai_metadata": json.dumps({"positive_prompt": "a", "guidance": 4, "cfg_scale": 1})},
         ("guidance",)),
        ({"Dream": '"a hill" -s 20 -S1234 --init_img x.png -f 0.7'}, ("-f", "--init_img")),
    ],
)  # fmt: skip
def test_what_is_not_used_is_named(texts: dict[str, str], unused: tuple[str, ...]) -> None:
    assert set(metadata.read(with_texts(**texts)).unused) == set(unused)


def test_settings_that_go_on_in_other_lines_are_all_read() -> None:
    text = "a hill\nSteps: 6, Sampler: UniPC,\nCFG scale: 5, Seed: 12"
    for written in (text, text.replace(",\n", "\n")):
        read = metadata.read(with_texts(parameters=written))
        assert (read.prompt, read.unused) == ("a hill", ())
        assert read.settings == {"Steps": "6", "Sampler": "UniPC", "CFG scale": "5", "Seed": "12"}


def test_the_comment_of_a_phone_is_no_text_of_a_program() -> None:
    for comment in (b'ASCII\0\0\0{"sceneType": 1}', b"ASCII\0\0\0Steps to the sea"):
        with pytest.raises(ValueError, match="does not say"):
            metadata.read(
                file_of("JPEG", exif=b"Exif\0\0" + comment_of(comment), comment=b"CREATOR: gd-jpeg")
            )


@pytest.mark.parametrize(
    "text", ['{"prompt": "a", "seed": ' + "9" * 6000 + "}", '{"prompt": "a", "seed": NaN}']
)
def test_a_seed_that_is_no_number_of_ours_leaves_the_rest(text: str) -> None:
    assert metadata.read(with_texts(parameters=text)).prompt == "a"


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
