"""Who does what in which order: balanced Latin squares, with the tasks rotated over the conditions."""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from app.study.plan.definition import Condition, Study, StudyTask


@dataclass(frozen=True)
class Trial:
    """One picture to make; position counts from 0, and the practice trial is before it, at −1."""

    condition: Condition
    task: StudyTask
    position: int

    @property
    def practice(self) -> bool:
        return self.position < 0


def williams(conditions: int) -> list[list[int]]:
    """Orders of `conditions` numbers in which each stands at each place, and comes right before each other,
    equally often: one square for an even number, the square and its mirror for an odd one.

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


def places(study: Study) -> int:
    """How many different plans there are: so many participants make the design complete."""
    return len(williams(len(study.conditions))) * len(study.conditions)


def order_of(study: Study, place: int) -> list[Condition]:
    """The conditions in the order in which the participant at `place`, from 0, meets them."""
    orders = williams(len(study.conditions))
    return [study.conditions[number] for number in orders[place % places(study) % len(orders)]]


def trials(study: Study, place: int) -> list[Trial]:
    """The trials of the participant at `place`, from 0, in their order, practice first.

    Every condition comes as a block, in a row of the square; its tasks are those of one of as many groups of
    tasks as there are conditions. Over all places each task meets each condition equally often. Within a
    block the order of tasks is drawn, the same draw for the same place. Practice is in the first condition.
    """
    place %= places(study)
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
    """The place that the fewest hold; of several, the first.

    taken: the places of all who have finished or are still at it. Who has dropped out is not among them, and
    so their place is given away again.
    """
    held = Counter(place % places(study) for place in taken)
    return min(range(places(study)), key=lambda place: (held[place], place))
