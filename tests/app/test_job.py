import math
from typing import Any

import pytest

from app.job import LIMITS, Job, RequestError, check_number
from app.seeds import following_seeds, fresh_seeds

FIELDS: dict[str, Any] = {
    "kind": "preview",
    "prompt": "a lake",
    "seed": 1,
    "steps": 6,
    "model": "m",
    "size": 64,
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
        ({"prompt": "x" * 5000}, "2,000 is the most"),
        ({"prompt": None}, "must be text"),
        ({"negative_prompt": 3}, "must be text"),
        ({"solver": "magic"}, "no solver “magic”.*consistency"),
        ({"kind": "urgent"}, "no kind of job"),
        ({"guidance": math.nan}, "guidance scale"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_job_that_makes_no_sense_is_refused_in_words(change: dict, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        Job(**(FIELDS | change))


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
