"""The ladder's simpler scheduling policies."""

from dataclasses import replace

import pytest

from app.worker.scheduling import SchedulingPolicy, Ticket
from tests.app.worker.test_scheduling import COSTS, crowd, run, ticket
from tools.load.policies import POLICIES


def fresh(seed: int) -> list[Ticket]:
    """A crowd of which nobody has begun."""
    return [replace(t, steps=t.steps_left) for t in crowd(seed)]


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_every_policy_finishes_everything_once(policy: SchedulingPolicy) -> None:
    for seed in range(30):
        tickets = [t for t in fresh(seed) if t.kind != "speculative"]
        steps = [t.number for batch in run(tickets, policy) for t in batch]
        assert {t.number: steps.count(t.number) for t in tickets} == {t.number: t.steps_left for t in tickets}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_batches_are_of_one_shape_and_end_at_the_knee(policy: SchedulingPolicy) -> None:
    for seed in range(50):
        batch = policy.choose(fresh(seed), COSTS)
        assert len({t.shape for t in batch}) <= 1
        most = COSTS.knee if batch[0].kind != "preview" else 2 * COSTS.knee
        assert sum(t.rows for t in batch) <= most


def test_in_order_of_arrival_nobody_is_preferred() -> None:
    tickets = [ticket(2), ticket(1, "refine", left=40), ticket(3, "speculative", left=40)]
    assert [t.number for t in POLICIES["step-fifo"].line_up(tickets, COSTS)] == [1, 2, 3]


def test_fifo_runs_one_request_to_its_end() -> None:
    refinement, grid = ticket(1, "refine", left=40), [ticket(n, request=2) for n in range(2, 6)]
    batches = run([refinement, *grid], POLICIES["fifo"])
    assert [len(batch) for batch in batches] == [1] * 40 + [4] * 6


def test_request_level_batches_hold_equal_requests_and_take_nobody_in() -> None:
    grids = [ticket(n, request=n // 4, owner=str(n // 4)) for n in range(8)]
    refinement = ticket(8, "refine", left=40)
    batches = run([*grids, refinement], POLICIES["batch"])
    assert [len(batch) for batch in batches] == [8] * 6 + [1] * 40
    begun = [replace(t, steps_left=3) for t in grids]
    assert POLICIES["priority"].choose([*begun, ticket(9)], COSTS) == begun
