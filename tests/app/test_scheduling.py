import random

from app.job import KINDS, Kind
from app.scheduling import Ticket, choose, line_up, rows_until_done


def ticket(number: int, kind: Kind = "preview", owner: str = "a", left: int = 6, shape: str = "s") -> Ticket:
    return Ticket(number, kind, owner, steps_left=left, rows=2, shape=shape)


def crowd(seed: int) -> list[Ticket]:
    rng = random.Random(seed)
    return [
        ticket(i, rng.choice(KINDS), rng.choice("abc"), rng.randint(1, 40), rng.choice("st"))
        for i in rng.sample(range(100), rng.randint(1, 30))
    ]


def test_previews_before_refinements_before_speculation() -> None:
    for seed in range(50):
        kinds = [KINDS.index(t.kind) for t in line_up(crowd(seed))]
        assert kinds == sorted(kinds)


def test_everybody_is_in_line_once() -> None:
    for seed in range(50):
        tickets = crowd(seed)
        assert sorted(t.number for t in line_up(tickets)) == sorted(t.number for t in tickets)


def test_owners_take_turns() -> None:
    tickets = [ticket(i, owner="many") for i in range(8)] + [ticket(8 + i, owner="few") for i in range(4)]
    owners = [t.owner for t in choose(tickets, 8)]
    assert owners == ["many", "few"] * 4


def test_a_batch_is_of_one_kind_and_shape_and_fits() -> None:
    for seed in range(50):
        tickets = crowd(seed)
        chosen = choose(tickets, 5)
        assert 1 <= len(chosen) <= 5
        assert len({(t.kind, t.shape) for t in chosen}) == 1
        assert chosen[0] == line_up(tickets)[0]


def test_a_batch_is_filled_when_it_can_be() -> None:
    assert len(choose([ticket(i) for i in range(20)], 8)) == 8


def test_nobody_starves_within_a_kind() -> None:
    tickets = {t.number: t for t in (ticket(i, owner=f"user {i % 5}") for i in range(23))}
    for _ in range(23 * 6):
        if not tickets:
            break
        for chosen in choose(list(tickets.values()), 4):
            left = chosen.steps_left - 1
            tickets.pop(chosen.number)
            if left:
                tickets[chosen.number] = ticket(chosen.number, owner=chosen.owner, left=left)
    assert not tickets


def test_estimates_count_what_goes_before() -> None:
    alone = [ticket(1)]
    assert rows_until_done(alone[0], alone) == 12
    refinement = ticket(2, "refine", left=40)
    assert rows_until_done(refinement, [*alone, refinement]) == 12 + 80
    assert rows_until_done(alone[0], [*alone, refinement]) == 12
    # Beside a longer one of its kind, it pays only for the steps that they make together.
    assert rows_until_done(ticket(3, left=6), [ticket(3, left=6), ticket(4, left=40)]) == 24
