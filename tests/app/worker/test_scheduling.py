"""The worker's decisions, as properties of every schedule."""

import random
import time
import timeit
from dataclasses import replace
from functools import partial

import pytest

from app.jobs.job import KINDS, Kind
from app.worker.costs import Costs
from app.worker.scheduling import (
    CARRYING,
    LATE,
    LATE_TO_BEGIN,
    PATIENCE_S,
    SPECULATED_SHARE,
    TURN,
    SchedulingPolicy,
    Ticket,
    late_requests,
)

COSTS = Costs(rows=(1, 2, 4, 8, 16, 32), seconds=(0.06, 0.07, 0.1, 0.14, 0.23, 0.43), decode_s=0.01)
POLICY = SchedulingPolicy()


def ticket(
    number: int,
    kind: Kind = "preview",
    owner: str = "a",
    left: int = 6,
    request: int | None = None,
    rows: int = 2,
    shape: str = "s",
    favoured: bool = False,
) -> Ticket:
    steps = max(left, 6 if kind == "preview" else 40)
    request = number if request is None else request
    return Ticket(number, request, kind, owner, steps, left, rows, shape, favoured)


def slower(factor: float) -> Costs:
    return replace(COSTS, seconds=tuple(factor * seconds for seconds in COSTS.seconds))


def crowd(seed: int) -> list[Ticket]:
    rng = random.Random(seed)
    return [
        ticket(
            number,
            rng.choice(KINDS),
            rng.choice("abc"),
            rng.randint(1, 40),
            request=number // 3,
            rows=rng.choice((1, 2)),
            shape=rng.choice("st"),
            favoured=rng.random() < 0.1,
        )
        for number in rng.sample(range(100), rng.randint(1, 30))
    ]


def run(tickets: list[Ticket], policy: SchedulingPolicy = POLICY, ticks: int = 10_000) -> list[list[Ticket]]:
    """The batches that a policy makes of tickets until nothing is left to do."""
    unfinished = {t.number: t for t in tickets}
    batches: list[list[Ticket]] = []
    while len(batches) < ticks:
        batch = policy.choose(list(unfinished.values()), COSTS)
        if not batch:
            break
        batches.append(batch)
        for t in batch:
            if t.steps_left == 1:
                del unfinished[t.number]
            else:
                unfinished[t.number] = replace(t, steps_left=t.steps_left - 1)
    return batches


def ends(batches: list[list[Ticket]]) -> list[int]:
    return [t.number for batch in batches for t in batch if t.steps_left == 1]


def test_everything_is_finished_once() -> None:
    for seed in range(30):
        tickets = [t for t in crowd(seed) if t.kind != "speculative"]
        steps = [t.number for batch in run(tickets) for t in batch]
        assert {t.number: steps.count(t.number) for t in tickets} == {t.number: t.steps_left for t in tickets}


def test_batches_are_of_one_shape_and_end_at_the_knee() -> None:
    for seed in range(50):
        batch = POLICY.choose(crowd(seed), COSTS)
        assert len({t.shape for t in batch}) <= 1
        most = COSTS.knee if batch[0].kind != "preview" else 2 * COSTS.knee
        assert sum(t.rows for t in batch) <= most


def test_previews_before_refinements_before_speculation() -> None:
    for seed in range(50):
        kinds = [KINDS.index(t.kind) for t in POLICY.line_up(crowd(seed), COSTS)]
        assert kinds == sorted(kinds)


def test_everybody_is_in_line_once() -> None:
    for seed in range(50):
        tickets = crowd(seed)
        assert sorted(t.number for t in POLICY.line_up(tickets, COSTS)) == sorted(t.number for t in tickets)


def test_owners_take_turns_grid_by_grid() -> None:
    many = [ticket(number, owner="many", request=number // 4) for number in range(12)]
    few = [ticket(12 + number, owner="few", request=9) for number in range(4)]
    owners = [t.owner for t in POLICY.line_up([*many, *few], COSTS)]
    assert owners == ["many"] * 4 + ["few"] * 4 + ["many"] * 8


def test_a_huge_request_waits_for_the_turns_of_the_others() -> None:
    for kind, steps in (("preview", 100), ("refine", 100)):
        huge = [replace(ticket(n, kind, "huge", request=0), steps=steps, steps_left=steps) for n in range(8)]  # type: ignore[arg-type]
        begun = [replace(t, steps_left=5) for t in huge]
        others = [ticket(10 + n, kind, f"{n // 4}", 40, request=1 + n // 4) for n in range(8)]  # type: ignore[arg-type]
        small = [replace(t, steps=TURN // 8, steps_left=TURN // 8) for t in others]
        for mine in (huge, begun):
            assert POLICY.line_up([*mine, *small], COSTS) == [*small, *mine]
        normal = [replace(t, steps=12, steps_left=12) for t in huge]
        assert POLICY.line_up([*normal, *small], COSTS) == [*normal, *small], "in order of arrival"


def test_a_huge_request_counts_as_many_before_the_next_of_its_owner() -> None:
    huge = [replace(ticket(n, owner="a", request=0), steps=100, steps_left=100) for n in range(8)]
    next_one = ticket(8, owner="a")
    others = [ticket(10 + n, owner="b", request=10 + n) for n in range(3)]
    line = POLICY.line_up([*huge, next_one, *others], COSTS)
    assert line == [*others, *huge, next_one]


def test_choosing_among_a_thousand_takes_little_time() -> None:
    rng = random.Random(1)
    tickets = [
        replace(
            ticket(n, rng.choice(KINDS), f"{rng.randrange(200)}", request=n // 4), age_s=rng.uniform(0, 9)
        )
        for n in range(1000)
    ]
    for work in (POLICY.choose, POLICY.forecast):
        times = timeit.repeat(partial(work, tickets, COSTS), timer=time.thread_time, number=1, repeat=20)
        assert min(times) < 0.005


def test_a_preview_joins_at_the_next_step() -> None:
    running = [ticket(n, left=3, request=0) for n in range(4)]
    late = ticket(9, owner="b")
    assert late in POLICY.choose([*running, late], COSTS)


def test_refinements_go_along_with_previews_while_they_hardly_slow_them_down() -> None:
    refinements = [ticket(10 + n, "refine", owner=str(n), left=40) for n in range(20)]
    for count in range(1, 9):
        previews = [ticket(n, owner="p", request=0) for n in range(count)]
        batch = POLICY.choose([*refinements, *previews], COSTS)
        assert batch[:count] == previews
        assert COSTS.tick(sum(t.rows for t in batch)) <= (1 + CARRYING) * COSTS.tick(2 * count)
    assert len(batch) > 8, "with eight previews there is room for some"


def test_refinements_do_not_go_along_while_previews_are_left_waiting() -> None:
    previews = [ticket(n, owner=str(n)) for n in range(12)]
    refinement = ticket(20, "refine", left=40)
    assert refinement not in POLICY.choose([refinement, *previews], COSTS)


def test_the_first_refinement_goes_along_in_any_case_when_it_has_lost_its_patience() -> None:
    previews = [ticket(n, owner=str(n)) for n in range(12)]
    waiting = [replace(ticket(20 + n, "refine", left=40), idle_s=PATIENCE_S + 0.1) for n in range(3)]
    batch = POLICY.choose([*waiting, *previews], COSTS)
    assert [t for t in batch if t.kind == "refine"] == waiting[:1], "the others wait for their turn"
    served = replace(waiting[0], idle_s=0.1)
    batch = POLICY.choose([served, *waiting[1:], *previews], COSTS)
    assert all(t.kind == "preview" for t in batch)
    assert POLICY.choose([waiting[0], ticket(0)], COSTS, max_rows=2) == [ticket(0)]


def test_previews_that_can_be_in_time_go_before_those_that_can_not() -> None:
    late = [replace(ticket(n, request=0), age_s=60.0) for n in range(4)]
    fresh = [ticket(10 + n, owner=str(n)) for n in range(10)]
    assert [t.number for t in POLICY.line_up([*late, *fresh], COSTS)[-4:]] == [0, 1, 2, 3]
    batch = POLICY.choose([*late, *fresh], COSTS)
    assert batch == fresh[:8]
    impatient = [replace(t, idle_s=PATIENCE_S + 0.1) for t in late]
    batch = POLICY.choose([*impatient, *fresh], COSTS)
    assert batch == [*fresh[:8], impatient[0]], "the flood does not starve them"
    refinement = ticket(30, "refine", left=40)
    assert POLICY.line_up([refinement, *late], COSTS)[-1] == refinement


def test_one_that_is_nearly_done_is_not_late_where_a_new_one_is() -> None:
    waited_s = (LATE - 0.5) * 6 * COSTS.tick(COSTS.knee)
    waited = [replace(ticket(n, left=left), age_s=waited_s) for n, left in ((0, 6), (1, 1))]
    assert [t.number for t in POLICY.line_up(waited, COSTS)] == [1, 0]


def test_none_begins_without_time_to_spare_and_none_that_has_begun_is_given_up_early() -> None:
    step_s = COSTS.tick(COSTS.knee)
    both_s = (LATE + LATE_TO_BEGIN) / 2 * 6 * step_s
    new = replace(ticket(0, left=6), age_s=both_s - 6 * step_s)
    begun = replace(ticket(1, left=5), age_s=both_s - 5 * step_s)
    assert late_requests([new, begun], COSTS) == {0}
    assert not late_requests([replace(new, age_s=new.age_s - 2 * step_s)], COSTS)
    assert late_requests([replace(begun, age_s=begun.age_s + 3 * step_s)], COSTS) == {1}
    assert not late_requests([replace(ticket(2, "refine", left=40), age_s=600.0)], COSTS)


def test_a_grid_is_late_as_a_whole() -> None:
    age_s = (LATE - 0.1) * 6 * COSTS.tick(COSTS.knee) - 3 * COSTS.tick(COSTS.knee)
    grid = [replace(ticket(n, request=0, left=left), age_s=age_s) for n, left in ((0, 3), (1, 3), (2, 4))]
    assert not late_requests(grid[:2], COSTS)
    assert late_requests(grid, COSTS) == {0}, "it is shown when its last picture is done"


def test_where_all_takes_longer_more_time_is_given() -> None:
    age_s = (LATE - 0.5) * 6 * COSTS.tick(COSTS.knee)
    waited, fresh = replace(ticket(0, owner="a"), age_s=age_s), ticket(1, owner="b")
    assert POLICY.line_up([waited, fresh], COSTS) == [fresh, waited]
    assert POLICY.line_up([waited, fresh], slower(2.0)) == [waited, fresh]


def test_refinements_end_under_an_endless_flood_of_previews() -> None:
    unfinished = {1: ticket(1, "refine", owner="r", left=40)}
    number, stepped, now = 10, 0.0, 0.0
    while 1 in unfinished and now < 2 * 40 * PATIENCE_S:
        tick = round(now / 0.25)
        if tick % 3 == 0:  # more than can be made
            for _ in range(8):
                number += 1
                unfinished[number] = ticket(number, owner=f"p{number}")
        unfinished[1] = replace(unfinished[1], idle_s=now - stepped)
        now += 0.25
        for t in POLICY.choose(list(unfinished.values()), COSTS):
            stepped = now if t.number == 1 else stepped
            del unfinished[t.number]
            if t.steps_left > 1:
                unfinished[t.number] = replace(t, steps_left=t.steps_left - 1)
    assert 1 not in unfinished
    assert len(unfinished) > 20, "the flood was none"


def test_speculation_goes_alone_and_last() -> None:
    guesses = [ticket(n, "speculative", left=40, request=0) for n in range(4)]
    batch = POLICY.choose([*guesses, ticket(9)], COSTS)
    assert [t.number for t in batch] == [9]
    assert len(POLICY.choose(guesses, COSTS)) == 4


def test_guesses_go_on_side_by_side_and_stop_short() -> None:
    guesses = [ticket(n, "speculative", left=40, request=0) for n in range(12)]
    batches = run(guesses)
    steps = [t.number for batch in batches for t in batch]
    assert {steps.count(n) for n in range(12)} == {round(SPECULATED_SHARE * 40)}
    middle = [t.number for batch in batches[: len(batches) // 2] for t in batch]
    assert max(middle.count(n) for n in range(12)) - min(middle.count(n) for n in range(12)) <= 1


def test_the_favoured_guess_goes_first_and_all_the_way() -> None:
    guesses = [ticket(n, "speculative", left=40, request=0, favoured=n == 20) for n in range(21)]
    batches = run(guesses)
    assert all(any(t.number == 20 for t in batch) for batch in batches[:40])
    assert ends(batches) == [20]


def test_memory_bounds_the_batch() -> None:
    tickets = [ticket(n) for n in range(8)] + [ticket(9, "refine", left=40)]
    assert len(POLICY.choose(tickets, COSTS, max_rows=4)) == 2
    assert len(POLICY.choose([ticket(1)], COSTS, max_rows=1)) == 1, "one is always tried"


def test_nothing_to_do_is_nothing() -> None:
    assert POLICY.choose([], COSTS) == []
    assert POLICY.forecast([], COSTS) == {}


def test_forecasts_hold_when_nobody_else_comes() -> None:
    for seed in range(20):
        tickets = [t for t in crowd(seed) if t.kind != "speculative"]
        if not tickets:
            continue
        expected = POLICY.forecast(tickets, COSTS)
        now = 0.0
        done: dict[int, float] = {}
        for batch in run(tickets):
            now += COSTS.tick(sum(t.rows for t in batch))
            done |= {t.number: now for t in batch if t.steps_left == 1}
        ratios = sorted(expected[t.number].seconds / done[t.number] for t in tickets)
        assert 0.5 < ratios[len(ratios) // 2] < 2, "half of the people are told within a factor of two"


def test_a_forecast_grows_with_the_line_and_with_the_pace() -> None:
    grid = [ticket(n, request=0) for n in range(4)]
    later = [ticket(10 + n, request=1, owner="b") for n in range(4)]
    expected = POLICY.forecast([*grid, *later], COSTS)
    assert len({expected[n].seconds for n in range(4)}) == 1, "what is asked for together is done together"
    assert expected[10].seconds > expected[0].seconds
    assert [expected[n].place for n in (0, 1, 2, 3, 10, 11, 12, 13)] == list(range(8))
    slow = POLICY.forecast(grid, slower(3))
    assert slow[0].seconds == pytest.approx(3 * (POLICY.forecast(grid, COSTS)[0].seconds - 0.01) + 0.01)
