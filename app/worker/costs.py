"""The time that ticks take on a device, by the size of their batch."""

from bisect import bisect_left
from dataclasses import dataclass

# A larger batch must do this much more work a second, or the knee is reached.
WORTH = 0.15
# No call may take longer: previews that arrive meanwhile wait for it.
LONGEST_S = 0.5
# The weight of the newest measurement in a running mean.
FORGETTING = 0.1


@dataclass(frozen=True)
class Costs:
    """Seconds of a denoiser call by its number of rows, and of decoding and encoding.

    Attributes:
        rows: numbers of batch rows, increasing; a picture with guidance has two.
        seconds: of a call with each of these numbers of rows.
        decode_s: of decoding one picture.
        encode_s: of encoding the prompt of one picture.

    Raises ValueError for no measurement, or one that is not positive.
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
        """Seconds of a call with so many rows: measured, or interpolated between its neighbours."""
        if rows <= self.rows[0]:
            return self.seconds[0]
        right = min(bisect_left(self.rows, rows), len(self.rows) - 1)
        if right == 0:
            return self.seconds[0] * rows / self.rows[0]
        (r0, r1), (s0, s1) = self.rows[right - 1 : right + 1], self.seconds[right - 1 : right + 1]
        return max(s0 + (s1 - s0) * (rows - r0) / (r1 - r0), 1e-9)

    @property
    def knee(self) -> int:
        """The largest worthwhile number of rows in a call: see WORTH and LONGEST_S."""
        knee = self.rows[0]
        for rows, seconds in zip(self.rows, self.seconds, strict=True):
            if seconds > LONGEST_S and rows > 2:
                break
            if rows / seconds > (1 + WORTH) * knee / self.tick(knee):
                knee = rows
        return max(knee, 2)
