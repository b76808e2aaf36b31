"""What a tick costs on this device: measured once at the start, by a short calibration."""

import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from app.models.memory import is_out_of_memory

# Of a call with so many rows; a picture with guidance has two.
BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# A larger batch must make this much more of every second, or the knee is reached.
WORTH = 0.15
# No call may take longer: previews that arrive meanwhile wait for it.
LONGEST_S = 0.5
REPEATS = 2


@dataclass(frozen=True)
class Costs:
    """Seconds of a denoiser call by its number of rows, and of what goes with it.

    rows: increasing. seconds: of a call with so many rows, each. decode_s: of decoding one picture.
    encode_s: of encoding the words for one picture.

    Raises ValueError when there is nothing to go by: no measurement, or one that is not positive.
    """

    rows: tuple[int, ...]
    seconds: tuple[float, ...]
    decode_s: float
    encode_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.rows or len(self.rows) != len(self.seconds):
            raise ValueError("Costs need as many numbers of rows as times, and at least one.")
        if list(self.rows) != sorted(set(self.rows)) or self.rows[0] < 1:
            raise ValueError("The numbers of rows must be positive and increase.")
        if min(*self.seconds, 1) <= 0 or min(self.decode_s, self.encode_s) < 0:
            raise ValueError("Times must be positive.")

    def tick(self, rows: int) -> float:
        """Seconds of a call with so many rows: measured, or on the line through its neighbours."""
        if rows <= self.rows[0]:
            return self.seconds[0]
        right = min(bisect_left(self.rows, rows), len(self.rows) - 1)
        if right == 0:
            return self.seconds[0] * rows / self.rows[0]
        (r0, r1), (s0, s1) = self.rows[right - 1 : right + 1], self.seconds[right - 1 : right + 1]
        return max(s0 + (s1 - s0) * (rows - r0) / (r1 - r0), 1e-9)

    @property
    def knee(self) -> int:
        """The most rows in a call that are worth their wait: see WORTH and LONGEST_S."""
        knee = self.rows[0]
        for rows, seconds in zip(self.rows, self.seconds, strict=True):
            if seconds > LONGEST_S and rows > 2:
                break
            if rows / seconds > (1 + WORTH) * knee / self.tick(knee):
                knee = rows
        return max(knee, 2)


def measure_costs(
    call: Callable[[int], object], decode: Callable[[], object], encode: Callable[[], object]
) -> Costs:
    """Time `call` for more and more rows until the knee is passed, `decode` and `encode` for one picture.

    All are called once more beforehand, since a first call pays for what all later ones use. Memory that
    runs out ends the growth and is no error.
    """
    rows: list[int] = []
    seconds: list[float] = []
    call(BUCKETS[0])
    for bucket in BUCKETS:
        try:
            seconds.append(_fastest(partial(call, bucket)))
        except RuntimeError as error:
            if not rows or not is_out_of_memory(error):
                raise
            break
        rows.append(bucket)
        if Costs(tuple(rows), tuple(seconds), 0).knee < bucket and bucket > 2:
            break
    decode()
    encode()
    return Costs(tuple(rows), tuple(seconds), _fastest(decode), _fastest(encode))


def _fastest(action: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return min(times)
