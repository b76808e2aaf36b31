import io
import time

import pytest
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st
from PIL import Image

from app.jobs import metadata, png
from app.jobs.png import Parameters, format_parameters, parse_parameters

PICTURE = Image.effect_noise((16, 16), 50).convert("RGB")
SETTINGS = {
    "Steps": "40",
    "Sampler": "dpm++2m",
    "CFG scale": "3",
    "Seed": "7",
    "Size": "256x256",
    "Model": "landscapes",
}
TAIL = "Steps: 28, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 1234, Size: 512x768, Version: v1.6.0"
LABELS = st.sampled_from(
    ["\n", "\r\n", " ", ",", ":", '"', "\\", "{", "}", "\0", "\u00c3\u00a9", "Seed: 9"]
) | (
    st.sampled_from(
        ["Negative prompt:", "Steps: 4, ", "Exact prompt: ", "Sampler: euler, ", "CFG scale: 3, "]
    )
)
PROMPTS = st.lists(LABELS | st.text(max_size=8), max_size=12).map("".join)
KEYS = st.from_regex(r"[A-Z][a-z]{3,8}( [a-z]{1,8})?", fullmatch=True)


@options(max_examples=400, deadline=None)
@given(PROMPTS, PROMPTS, st.dictionaries(KEYS, PROMPTS, max_size=5), st.booleans())
def test_what_is_written_is_read_again_to_the_letter(
    prompt: str, negative: str, others: dict[str, str], usual: bool
) -> None:
    parameters = Parameters(prompt, negative, (SETTINGS if usual else {}) | others)
    assert metadata.read(png.write(PICTURE, parameters)) == parameters


def test_an_ordinary_text_has_nothing_that_other_programs_do_not_know() -> None:
    text = format_parameters(Parameters("a lake, a cabin: dusk", "fog, rain", SETTINGS))
    assert text == (
        "a lake, a cabin: dusk\nNegative prompt: fog, rain\n"
        "Steps: 40, Sampler: dpm++2m, CFG scale: 3, Seed: 7, Size: 256x256, Model: landscapes"
    )


def test_the_picture_itself_is_unchanged() -> None:
    data = png.write(PICTURE, Parameters("x", "", SETTINGS))
    assert Image.open(io.BytesIO(data)).tobytes() == PICTURE.tobytes()


@pytest.mark.parametrize(
    ("text", "prompt", "negative"),
    [
        (f"a hill\nNegative prompt: fog, rain\n{TAIL}", "a hill", "fog, rain"),
        (f"a hill\nNegative prompt:fog\n{TAIL}", "a hill", "fog"),
        (f"a hill\nNegative prompt:\nfog, rain\n{TAIL}", "a hill", "fog, rain"),
        (f"a hill\nNegative prompt:\n{TAIL}", "a hill", ""),
        (f"a hill\nNegative Prompt: fog\n{TAIL}", "a hill", "fog"),
        (f"a hill\r\nNegative prompt: fog\r\n{TAIL}\r\n\r\n", "a hill", "fog"),
        (f"a hill\nNegative prompt: fog\n{TAIL}\0", "a hill", "fog"),
        (f"a hill\nNegative prompt: fog\n{TAIL}\nTemplate: a {{hill|lake}}\nat noon", "a hill", "fog"),
        (
            f"a sign: Negative prompt: none\nNegative prompt: fog\n{TAIL}",
            "a sign: Negative prompt: none",
            "fog",
        ),
        (
            f"a hill\nBREAK\nat noon\nNegative prompt: fog,\nrain\n{TAIL}",
            "a hill\nBREAK\nat noon",
            "fog,\nrain",
        ),
        (f"a hill. {TAIL}", "a hill.", ""),
        (
            f"a hill\nnegative prompt : fog\n{TAIL.replace('Seed', 'seed').replace('Steps', 'steps')}",
            "a hill",
            "fog",
        ),
        (f"{TAIL}", "", ""),
        (f"a hill\nNegative prompt: fog\n{TAIL.partition(', ')[2]}", "a hill", "fog"),
    ],
)
def test_settings_and_labels_never_get_into_the_prompts(text: str, prompt: str, negative: str) -> None:
    read = parse_parameters(text)
    assert (read.prompt, read.negative_prompt) == (prompt, negative)
    assert (read.settings["Seed"], read.settings["Sampler"]) == ("1234", "DPM++ 2M Karras")


@pytest.mark.parametrize(
    "text",
    [
        "only: a prompt, really",
        "a hill, Steps: made of stone, Seed: oak",
        "a hill,\n<lora: x v1:1>, <lora: y v1:1>, <lora: z v1:1>, more",
    ],
)
def test_a_text_without_settings_is_a_prompt(text: str) -> None:
    assert parse_parameters(text) == Parameters(text)


def test_the_first_of_equal_keys_counts_and_values_keep_their_commas() -> None:
    read = parse_parameters(
        'a hill\nSteps: 20, Seed: 12, ADetailer prompt: "a face, Seed: 99, \\"smile\\"", '
        'Hashes: {"a": "b", "c": "d"}, Civitai resources: [{"a": 1, "b": 2}], '
        'Lora hashes: "x: 0011, y: 22", Seed: 13, Template: "open, to the end'
    )
    assert read.settings == {
        "Steps": "20",
        "Seed": "12",
        "ADetailer prompt": 'a face, Seed: 99, "smile"',
        "Hashes": '{"a": "b", "c": "d"}',
        "Civitai resources": '[{"a": 1, "b": 2}]',
        "Lora hashes": "x: 0011, y: 22",
        "Template": '"open',
    }


PIECES = [
    "a",
    " ",
    ":",
    ",",
    '"',
    "\\",
    "{",
    "\n",
    'a:"',
    'a: "\\",',
    "a: {,",
    "a: b\n",
    "Steps: 1, ",
    "negative prompt ",
]


@pytest.mark.parametrize("piece", PIECES)
def test_time_grows_with_the_length_and_no_faster(piece: str) -> None:
    def seconds(letters: int) -> float:
        text, best = "x\n" + piece * (letters // len(piece)) + "x", float("inf")
        for _ in range(3):
            began = time.process_time()
            parse_parameters(text)
            best = min(best, time.process_time() - began)
        return best

    assert seconds(64_000) < 6 * seconds(16_000) + 0.02  # quadratic time would grow to 16 times as much


def test_a_longer_text_is_refused_before_it_is_parsed() -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match="too long"):
        parse_parameters("a" * 20_000_000)
    assert time.process_time() - began < 0.1
