"""Orders are balanced, tasks meet all conditions, and places of dropouts are given to others."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise, permutations

import pytest

from app.study.plan.definition import Study
from app.study.plan.order import count_places, next_place, trials, williams


def with_conditions(study: Study, count: int, tasks_each: int) -> Study:
    conditions = tuple(replace(study.conditions[1], id=f"c{i}", steps=i + 1) for i in range(count))
    tasks = tuple(replace(study.tasks[0], id=f"t{i}") for i in range(count * tasks_each))
    return replace(study, conditions=conditions, tasks=tasks)


@pytest.mark.parametrize("count", range(2, 9))
def test_each_stands_everywhere_and_precedes_each_other_equally_often(count: int) -> None:
    orders = williams(count)
    assert len(orders) == (2 * count if count % 2 else count)
    at = Counter((place, each) for order in orders for place, each in enumerate(order))
    assert set(at.values()) == {len(orders) // count} and len(at) == count**2
    before = Counter(pair for order in orders for pair in pairwise(order))
    assert len(before) == count * (count - 1) and len(set(before.values())) == 1


def test_the_square_of_four_is_bradleys() -> None:
    """Bradley (1958), Journal of the American Statistical Association 53, 525: the first row is 1, 2, n, 3,
    n − 1, …, and each next row adds one. Of three, square and mirror are all six orders."""
    assert williams(4) == [[0, 1, 3, 2], [1, 2, 0, 3], [2, 3, 1, 0], [3, 0, 2, 1]]
    assert sorted(map(tuple, williams(3))) == list(permutations(range(3)))


@pytest.mark.parametrize("count", [2, 3, 4, 5])
@pytest.mark.parametrize("tasks_each", [1, 2])
def test_each_task_meets_each_condition_equally_often(study: Study, count: int, tasks_each: int) -> None:
    study = with_conditions(study, count, tasks_each)
    plans = [trials(study, place)[1:] for place in range(count_places(study))]
    met = Counter((each.condition.id, each.task.id) for plan in plans for each in plan)
    assert len(met) == count * len(study.tasks) and len(set(met.values())) == 1
    before = Counter(
        pair for plan in plans for pair in pairwise(dict.fromkeys(each.condition.id for each in plan))
    )
    assert len(before) == count * (count - 1) and len(set(before.values())) == 1
    for plan in plans:  # everybody does every task once, and every condition as often
        assert sorted(each.task.id for each in plan) == sorted(task.id for task in study.tasks)
        assert set(Counter(each.condition.id for each in plan).values()) == {tasks_each}


def test_a_place_always_has_the_same_trials_and_practice_comes_first(study: Study) -> None:
    study = with_conditions(study, 3, 3)
    planned = trials(study, 4)
    assert planned == trials(study, 4) == trials(study, 4 + count_places(study))
    assert [each.position for each in planned] == list(range(-1, 9))
    assert planned[0].practice and not planned[1].practice
    assert not trials(replace(study, practice=""), 4)[0].practice


def test_places_fill_up_evenly_and_are_given_again(study: Study) -> None:
    count = count_places(study)
    taken: list[int] = []
    for _ in range(2 * count):
        taken.append(next_place(study, taken))
    assert set(Counter(taken).values()) == {2}
    taken.remove(2)
    assert next_place(study, taken) == 2
