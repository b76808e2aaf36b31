import math
import pickle
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from app.jobs.job import LIMITS, Job, Record, RequestError, Start, StoredPicture, Variation, check_number
from app.jobs.seeds import following_seeds, fresh_seeds

FIELDS: dict[str, Any] = {
    "kind": "preview",
    "prompt": "a lake",
    "seed": 1,
    "steps": 6,
    "model": "m",
    "width": 64,
    "height": 64,
}


@pytest.mark.parametrize("field", sorted(LIMITS))
@pytest.mark.parametrize(
    "wrong", [math.nan, math.inf, -math.inf, None, "", "six", "nan", [], {}, True, 1e400, -5, 1e12]
)
def test_only_numbers_in_range_pass(field: str, wrong: object) -> None:
    with pytest.raises(RequestError, match=LIMITS[field].name):
        check_number(field, wrong)


@pytest.mark.parametrize("right", [6, 6.0, "6"])
def test_numbers_come_in_many_shapes(right: object) -> None:
    assert check_number("steps", right) == 6
    assert isinstance(check_number("steps", right), int)


def test_fractions_are_for_guidance_only() -> None:
    assert check_number("guidance", 2.5) == 2.5
    with pytest.raises(RequestError, match="whole"):
        check_number("steps", 2.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": " \n "}, "prompt is empty"),
        ({"prompt": "x" * 5000}, "at most 2,000"),
        ({"prompt": None}, "must be text"),
        ({"negative_prompt": 3}, "must be text"),
        ({"solver": "magic"}, "no solver “magic”.*consistency"),
        ({"kind": "urgent"}, "no kind of job"),
        ({"guidance": math.nan}, "guidance scale"),
        ({"seed": -1}, "seed"),
        ({"width": 0}, "The width"),
        ({"height": 64.5}, "The height.*whole"),
        ({"variation": 3}, "variation"),
        ({"start": b"picture"}, "start"),
    ],
)
def test_a_job_that_makes_no_sense_is_refused_in_words(change: dict, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        Job(**(FIELDS | change))


def test_variations_and_starts_that_make_no_sense_are_refused_in_words() -> None:
    with pytest.raises(RequestError, match=r"amount of variation .* 0 to 1"):
        Variation(1, 1.5)
    with pytest.raises(RequestError, match="The seed"):
        Variation(-1, 0.5)
    with pytest.raises(RequestError, match="of another variation"):
        Variation(1, 0.5, 3)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="varied 8 times"):
        Variation.parse(", ".join(["1:0.5"] * 9))
    with pytest.raises(RequestError, match="no picture to start from"):
        Start(b"")
    with pytest.raises(RequestError, match="The strength"):
        Start(b"picture", math.nan)


def test_a_record_tells_all_that_a_picture_depends_on() -> None:
    job = Job(**(FIELDS | {"width": 96, "variation": Variation(7, 0.25), "start": Start(b"picture", 0.5)}))
    assert pickle.loads(pickle.dumps(job)) == job != replace(job, variation=None)
    settings = Record(job, "0" * 64, 6, 1.0).parameters().settings
    assert settings["Size"] == "96x64"
    assert (settings["Variation seed"], settings["Variation seed strength"]) == ("7", "0.25")
    assert settings["Denoising strength"] == "0.5"
    assert "Variation seed" not in Record(Job(**FIELDS), "0" * 64, 6, 1.0).parameters().settings


def test_a_variation_of_a_variation_is_written_and_read() -> None:
    twice = Variation(91, 0.5, Variation(77, 0.3))
    assert str(twice) == "77:0.3, 91:0.5"
    assert Variation.parse(str(twice)) == Variation(**asdict(twice)) == twice
    settings = Record(Job(**(FIELDS | {"variation": twice})), "0" * 64, 6, 1.0).parameters().settings
    assert settings["Variations"] == str(twice) and "Variation seed" not in settings
    assert Variation.parse(" ") is None


def test_white_space_does_not_make_another_job() -> None:
    assert Job(**(FIELDS | {"prompt": "  a\n lake "})) == Job(**FIELDS)


def test_fresh_seeds_are_new_and_distinct() -> None:
    taken = fresh_seeds(8)
    assert len(set(taken)) == 8
    assert not set(fresh_seeds(8, taken)) & set(taken)


def test_following_seeds_stay_in_range() -> None:
    assert following_seeds(5, 3) == [5, 6, 7]
    with pytest.raises(RequestError, match="beyond the last"):
        following_seeds(2**32 - 2, 3)


def test_a_stored_start_is_read_when_needed_and_travels_whole(tmp_path: Path) -> None:
    whole = Start(b"picture", 0.5)
    file = tmp_path / f"{whole.name}.png"
    file.write_bytes(b"picture")
    stored = Start(StoredPicture(file), 0.5)
    assert stored == whole and hash(stored) == hash(whole) and stored.picture == b"picture"
    sent = pickle.dumps(stored)
    file.unlink()
    assert pickle.loads(sent).picture == b"picture"
    with pytest.raises(RequestError, match="gone"):
        _ = stored.picture
    assert replace(stored, strength=0.7) == Start(b"picture", 0.7) != whole
    assert Start(b"another", 0.5) != whole
