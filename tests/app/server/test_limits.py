"""Each person has a share that refills."""

import pytest

from app.models import ImageModel
from app.server.limits import MAX_PEOPLE, LimitReached, Limits, network_of
from app.worker import Worker


def test_each_has_a_share_that_refills(model: ImageModel, worker: Worker) -> None:
    clock = 0.0
    limits = Limits(600, lambda: clock)
    limits.take("ada", 900)  # never too large, only too soon
    with pytest.raises(LimitReached, match="again in 31 s") as caught:
        limits.take("ada", 1)
    assert caught.value.wait_s == pytest.approx(30, abs=0.2)
    limits.charge("cyd", 2900)
    with pytest.raises(LimitReached, match="again in 4 minutes"):
        limits.take("cyd", 1)
    limits.take("bob", 1)
    clock = caught.value.wait_s
    limits.take("ada", 1)
    with pytest.raises(LimitReached):
        limits.take("ada", 1)
    clock = 10_000.0
    limits.take("ada", 600)
    with pytest.raises(LimitReached):
        limits.take("ada", 1)


def test_people_are_forgotten_before_they_take_memory() -> None:
    clock = 0.0
    limits = Limits(600, lambda: clock)
    limits.charge("ada", 5000)
    for number in range(2 * MAX_PEOPLE):
        limits.charge(str(number), 1)
    assert len(limits._buckets) <= MAX_PEOPLE
    with pytest.raises(LimitReached):
        limits.take("ada", 1)


def test_a_household_is_one_person() -> None:
    assert network_of("192.0.2.7") == "192.0.2.7"
    assert network_of("2001:db8:1:2:aaaa::1") == network_of("2001:db8:1:2::9")
    assert network_of("2001:db8:1:2::9") != network_of("2001:db8:1:3::9")
    assert network_of("testclient") == "testclient"
