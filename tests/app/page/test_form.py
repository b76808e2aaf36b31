"""From pictures and links back to the form."""

import io
from dataclasses import asdict, replace
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from app.jobs import png
from app.jobs.job import Record, RequestError
from app.jobs.uploads import MAX_BYTES
from app.models import ImageModel
from app.page.form import form_values, from_link, from_picture, from_record
from tests.conftest import make_job


def png_with(text: str | None, size: tuple[int, int] = (64, 64)) -> bytes:
    info = PngImagePlugin.PngInfo()
    if text is not None:
        info.add_text("parameters", text)
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def test_what_we_wrote_comes_back(model: ImageModel) -> None:
    job = make_job(model, negative_prompt="stars, boat", seed=77, steps=5, guidance=2.5, solver="unipc")
    record = Record(job, model.facts.revision, 5, 1.0)
    wanted = from_picture(record.png(Image.new("RGB", (64, 64))))
    assert wanted == from_record(record) == asdict(record.parameters())
    values, notes = form_values(wanted, model.facts)
    assert values == {
        "prompt": job.prompt,
        "negative_prompt": "stars, boat",
        "seed": 77,
        "variation": "",
        "random_seeds": False,
        "steps": 5,
        "guidance": 2.5,
        "solver": "unipc",
    }
    assert notes == []


def test_a_final_says_its_full_steps_and_leaves_the_preview_alone(model: ImageModel) -> None:
    job = make_job(model, kind="refine", steps=40, solver="dpm++2m")
    values, _ = form_values(from_record(Record(job, model.facts.revision, 40, 1.0)), model.facts)
    assert values["full_steps"] == 40
    assert not {"steps", "solver"} & set(values)


def test_what_other_programs_write_is_understood(model: ImageModel) -> None:
    text = (
        "a lake at night\nNegative prompt: boat\n"
        "Steps: 28, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 3141592653, Size: 512x768, "
        'Model hash: abcdef, Model: dream, Lora hashes: "one: 12, two: 34", Version: v1.9'
    )
    values, notes = form_values(from_picture(png_with(text)), model.facts)
    assert values["prompt"] == "a lake at night"
    assert values["negative_prompt"] == "boat"
    assert (values["seed"], values["guidance"], values["full_steps"]) == (3141592653, 7, 28)
    assert any("dream" in note for note in notes)
    assert any("512x768" in note for note in notes)
    assert not any("sampler" in note for note in notes)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"Sampler": "Euler a", "Steps": "20"}, "no sampler “Euler a”"),
        ({"Seed": "-1"}, "The seed must be"),
        ({"Seed": "99999999999999"}, "The seed must be"),
        ({"CFG scale": "high"}, "guidance can't be used"),
        ({"CFG scale": "40"}, "guidance can't be used"),
        ({"Steps": "0"}, "number of steps can't"),
        ({"Steps": "1e9"}, "number of steps can't"),
        ({"Seed": "1", "Variation seed": "-2", "Variation seed strength": "1"}, "It is a variation"),
        ({"Seed": "1", "Variation seed": "2", "Variation seed strength": "0.3"}, "turned 30% towards that"),
        ({"Steps": "25", "Sampler": "Euler"}, "made by euler; refinements are now, too"),
        ({"Preview decoder": "taesd", "Steps": "4"}, "drawn by taesd"),
        ({"Clip skip": "2", "Hires upscale": "2"}, "Not used here: Clip skip, Hires upscale."),
        ({"Model": "dream"}, "made by dream"),
        ({"Model": "tiny", "Model hash": "0123"}, "another version of tiny"),
        ({"Size": "1x1"}, "1x1 pixels"),
    ],
)
def test_what_does_not_fit_is_said(model: ImageModel, setting: dict[str, str], words: str) -> None:
    values, notes = form_values({"prompt": "lake", "settings": setting}, model.facts)
    assert values["prompt"] == "lake"
    assert any(words in note for note in notes), notes


@pytest.mark.parametrize("wanted", [{}, {"prompt": 7}, {"prompt": " "}, {"prompt": "lake " * 900}])
def test_without_a_usable_prompt_nothing_is_filled_in(model: ImageModel, wanted: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="prompt"):
        form_values(wanted, model.facts)
    values, notes = form_values({"prompt": "lake", "settings": ["Seed", 1]}, model.facts)
    assert (values, notes) == ({"prompt": "lake", "negative_prompt": ""}, [])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"no picture at all", "not a picture"),
        (png_with(None), "does not say how the picture was made"),
        (png_with("lake\nSteps: 4, Seed: 1")[:-40], "damaged"),
        (png_with("lake", (17_000, 8)), "too large"),
        (b"\x89PNG\r\n\x1a\n" + bytes(MAX_BYTES), "at most 20 MB"),
    ],
)
def test_foreign_and_broken_files_get_a_clear_message(data: bytes, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        from_picture(data)


@pytest.mark.parametrize("name", ["DPM++ 2M Karras", "dpmpp_2m", "dpmpp_2m_k", "DPM++ 2M", "dpm++2m"])
def test_our_solvers_are_known_by_other_names(model: ImageModel, name: str) -> None:
    values, notes = form_values({"prompt": "a", "settings": {"Steps": "6", "Sampler": name}}, model.facts)
    assert (values["solver"], notes) == ("dpm++2m", [])


def test_a_link_says_the_same_as_a_picture(model: ImageModel) -> None:
    query = {"prompt": "lake", "seed": "5", "steps": "7", "solver": "deis", "guidance": "2"}
    values, notes = form_values(from_link(query), model.facts)
    job = make_job(model, prompt="lake", seed=5, steps=7, solver="deis", guidance=2)
    assert values == form_values(from_record(Record(job, model.facts.revision, 7, 0)), model.facts)[0]
    assert notes == []
    assert form_values(from_link({"prompt": "lake"}), model.facts)[0] == {
        "prompt": "lake",
        "negative_prompt": "",
    }


def test_a_prompt_with_lines_and_quotes_survives(model: ImageModel) -> None:
    parameters = png.Parameters('a "lake", by night', "", {"Steps": "4", "Seed": "3"})
    wanted = from_picture(png.write(Image.new("RGB", (8, 8)), replace(parameters)))
    assert form_values(wanted, model.facts)[0]["prompt"] == 'a "lake", by night'
