"""The power of the paired t test agrees with statsmodels and with simulation."""

import math

import pytest

from app.study.report.power import participants_needed, power_of, simulate_power


def test_power_is_that_of_statsmodels_and_of_simulation() -> None:
    from statsmodels.stats.power import TTestPower

    theirs = TTestPower().power(math.log(1.85) / 0.8, 14, 0.05)
    assert power_of(14, 1.85, 0.8) == pytest.approx(theirs, abs=1e-6)
    found = participants_needed(1.85, 0.8)
    assert power_of(found.participants - 1, 1.85, 0.8) < 0.8 <= found.power
    assert abs(found.simulated - found.power) < 5 * found.error
    assert power_of(20, 1 / 1.85, 0.8) == pytest.approx(power_of(20, 1.85, 0.8))
    assert simulate_power(10, 1.0, 0.5)[0] == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("bad", [(1.0, 0.5), (-2, 0.5), (1.5, 0), (1.0001, 5.0)])
def test_power_of_nonsense(bad: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"ratio must|spread must|more than"):
        participants_needed(*bad)
