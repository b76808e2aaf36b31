from dataclasses import dataclass
from typing import Any

import pytest

from app.jobs.job import Job, RequestError, Start, Variation
from app.jobs.request import build_jobs, refinement_of, reseeded, variations_of


@dataclass(frozen=True)
class Model:
    name: str = "m"
    width: int = 96
    height: int = 64
    edits: bool = False


def build(model: Model = Model(), **values: Any) -> list[Job]:
    given: dict[str, Any] = {
        "prompt": "a lake",
        "steps": 6,
        "guidance": 3.0,
        "solver": "consistency",
    } | values
    return build_jobs("preview", model, **given)


def test_jobs_of_a_request_differ_in_their_seeds_alone() -> None:
    first, *others = build(count=4, seed=7, owner="me", negative_prompt="fog")
    assert [job.seed for job in (first, *others)] == [7, 8, 9, 10]
    assert {reseeded(job, 7) for job in others} == {first}
    assert (first.kind, first.owner, first.negative_prompt, first.model) == ("preview", "me", "fog", "m")


@pytest.mark.parametrize("open_seed", [None, -1])
def test_fresh_seeds_are_drawn_where_none_is_given(open_seed: int | None) -> None:
    assert len({job.seed for job in build(count=8, seed=open_seed)}) == 8


def test_the_size_is_the_models_own_where_none_is_given() -> None:
    assert [(job.width, job.height) for job in build()] == [(96, 64)]
    assert [(job.width, job.height) for job in build(width=128, height=32)] == [(128, 32)]


def test_a_given_strength_replaces_that_of_the_start() -> None:
    start = Start(b"picture", 0.4)
    assert [job.start for job in build(start=start)] == [start]
    assert [job.start for job in build(start=start, strength=0.7)] == [Start(b"picture", 0.7)]


def test_an_edit_has_full_strength_whatever_was_asked_for() -> None:
    start = Start(b"picture", 0.4)
    assert [job.start for job in build(Model(edits=True), start=start, strength="a lot")] == [
        Start(b"picture", 1.0)
    ]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"count": 0}, "number of previews"),
        ({"count": None}, "number of previews"),
        ({"seed": "seven"}, "The seed"),
        ({"seed": 2**32 - 2, "count": 4}, "beyond the last"),
        ({"steps": 2.5}, "whole"),
        ({"solver": "magic"}, "no solver"),
        ({"prompt": ""}, "prompt is empty"),
        ({"width": 100_000}, "The width"),
        ({"start": Start(b"picture"), "strength": 7}, "The strength"),
    ],
)
def test_a_wrong_value_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        build(**wrong)


def test_a_refinement_keeps_the_noise_of_its_preview() -> None:
    (preview,) = variations_of(build(seed=7)[0], 1, 0.3)
    refined = refinement_of(preview, 40.0, "unipc")
    assert (refined.kind, refined.steps, refined.solver) == ("refine", 40, "unipc")
    assert (refined.seed, refined.variation) == (preview.seed, preview.variation)
    with pytest.raises(RequestError, match="number of steps"):
        refinement_of(preview, 0, "unipc")


def test_variations_stay_with_their_jobs_seed() -> None:
    job = build(seed=7)[0]
    near = variations_of(job, 3, 0.3)
    assert {each.seed for each in near} == {7}
    towards = {each.variation.seed for each in near if each.variation}
    assert len(towards) == 3 and 7 not in towards
    assert reseeded(near[0], 5).variation == Variation(5, 0.3)
    assert reseeded(near[0], 5).seed == 7
