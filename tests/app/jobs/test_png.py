import pytest
from PIL import Image

from app.jobs import png

PICTURE = Image.effect_noise((16, 16), 50).convert("RGB")
SETTINGS = {
    "Steps": "40",
    "Sampler": "dpm++2m",
    "CFG scale": "3",
    "Seed": "7",
    "Size": "256x256",
    "Model": "landscapes",
}


@pytest.mark.parametrize(
    ("prompt", "negative"),
    [
        ("snowy mountains", ""),
        ("a lake, a cabin: dusk", "fog, rain"),
        ("雪山 и закат, café", "ängstlich"),
        ("two\nlines", "also\ntwo"),
        ('quotes " and \\ backslashes', ""),
    ],
)
def test_what_is_written_is_read_again(prompt: str, negative: str) -> None:
    parameters = png.Parameters(prompt, negative, SETTINGS)
    assert png.read(png.write(PICTURE, parameters)) == parameters


def test_the_picture_itself_is_unchanged() -> None:
    import io

    data = png.write(PICTURE, png.Parameters("x", "", SETTINGS))
    assert Image.open(io.BytesIO(data)).tobytes() == PICTURE.tobytes()


def test_values_with_commas_survive() -> None:
    settings = SETTINGS | {"Model": 'odd, name: "quoted"'}
    assert png.parse_parameters(png.format_parameters(png.Parameters("x", "", settings))).settings == settings


def test_reads_what_other_tools_write() -> None:
    text = (
        "a castle, (dusk:1.2)\nNegative prompt: people, blurry\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 12, Size: 512x512, "
        'Model: x, Hashes: "a: b, c: d"'
    )
    parameters = png.parse_parameters(text)
    assert parameters.prompt == "a castle, (dusk:1.2)"
    assert parameters.negative_prompt == "people, blurry"
    assert parameters.settings["Sampler"] == "DPM++ 2M"
    assert parameters.settings["Hashes"] == "a: b, c: d"


def test_a_text_without_settings_is_a_prompt() -> None:
    assert png.parse_parameters("only: a prompt, really") == png.Parameters("only: a prompt, really")


def test_foreign_and_broken_files_are_refused_in_words() -> None:
    whole = png.write(PICTURE, png.Parameters("x", "", SETTINGS))
    import io

    plain = io.BytesIO()
    PICTURE.save(plain, "PNG")
    with pytest.raises(ValueError, match="does not tell how it was made"):
        png.read(plain.getvalue())
    for broken in (b"", b"GIF89a", whole[:30], b"\x89PNG\r\n\x1a\n" + b"0" * 50):
        with pytest.raises(ValueError, match="not a PNG"):
            png.read(broken)
