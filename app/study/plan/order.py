"""Draw the order of a study: balanced Latin squares of conditions, with the tasks rotated over them."""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from app.study.plan.definition import Condition, Study, StudyTask


@dataclass(frozen=True)
class Trial:
    """One picture to make.

    Attributes:
        position: counts from 0; the practice trial comes before it, at −1.
    """

    condition: Condition
    task: StudyTask
    position: int

    @property
    def practice(self) -> bool:
        return self.position < 0


def williams(conditions: int) -> list[list[int]]:
    """Return orders of `conditions` numbers, balanced for position and for what comes right before.

    Each number stands at each position equally often, and right before each other number equally often. An
    even count takes one square, an odd one the square and its mirror image.

    Williams (1949), Australian Journal of Scientific Research A 2, 149.
    """
    first = [0]
    low, high = 1, conditions - 1
    while low <= high:  # 0, 1, n−1, 2, n−2, …
        first.append(low)
        low += 1
        if low <= high:
            first.append(high)
            high -= 1
    square = [[(each + row) % conditions for each in first] for row in range(conditions)]
    return square + [row[::-1] for row in square] if conditions % 2 else square


def count_places(study: Study) -> int:
    """Return how many different plans there are: with that many participants the design is complete."""
    return len(williams(len(study.conditions))) * len(study.conditions)


def order_of(study: Study, place: int) -> list[Condition]:
    """Return the conditions in the order in which the participant at `place`, from 0, meets them."""
    orders = williams(len(study.conditions))
    return [study.conditions[number] for number in orders[place % count_places(study) % len(orders)]]


def trials(study: Study, place: int) -> list[Trial]:
    """Return the trials of the participant at `place`, from 0, in their order, practice first.

    The conditions come in blocks, in the order of a row of the square. The tasks are split into as many
    groups as there are conditions, and each block has one group; over all places, each task meets each
    condition equally often. The order of tasks within a block is random, with the place as the seed. The
    practice trial uses the first condition.
    """
    place %= count_places(study)
    shift, conditions = place // len(williams(len(study.conditions))), len(study.conditions)
    planned: list[tuple[Condition, StudyTask]] = []
    for condition in order_of(study, place):
        number = study.conditions.index(condition)
        group = list(study.tasks[(number + shift) % conditions :: conditions])
        random.Random(f"{place} {number}").shuffle(group)
        planned += [(condition, task) for task in group]
    practice = StudyTask("practice", study.practice)
    first = [Trial(planned[0][0], practice, -1)] if study.practice else []
    return [*first, *(Trial(condition, task, i) for i, (condition, task) in enumerate(planned))]


def next_place(study: Study, taken: Iterable[int]) -> int:
    """Return the place that the fewest participants hold; the first of several.

    Args:
        taken: the places of all participants who have finished or still take part. Those who dropped out are
            left out, so that their places are given to others.
    """
    held = Counter(place % count_places(study) for place in taken)
    return min(range(count_places(study)), key=lambda place: (held[place], place))
