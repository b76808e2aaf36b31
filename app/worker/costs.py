"""The time that calls of the denoiser take, by their number of rows: measured at the start, then learned."""

from bisect import bisect_left
from dataclasses import dataclass, replace
from itertools import accumulate
from math import exp, log, log2

# A larger batch must do this much more work a second, or the knee is reached.
WORTH = 0.15
# No call may take longer: previews that arrive meanwhile wait for it.
LONGEST_S = 0.5
# The knee moves only where it would with WORTH and LONGEST_S this much more or less: it must not flap.
HYSTERESIS = 0.08
# The weight of the newest measurement in a running mean.
FORGETTING = 0.1
# How far a call moves the costs of its size towards its own time, on a log scale; a size of twice or half the
# rows follows as far as the second says, and so on, since most of what slows a call slows all.
LEARNING, FOLLOWING = 0.5, 0.6
# A call that is further off than this, as a log ratio, counts as if it were this far off.
LARGEST_SURPRISE = 0.3
# When so many calls were not of a size next to the knee, one is, to learn what that takes.
EXPLORING = 15
# Calls with more rows are not tried.
MAX_ROWS = 256


@dataclass(frozen=True)
class Costs:
    """Seconds of a denoiser call by its number of rows, and of decoding and encoding.

    Attributes:
        rows: numbers of batch rows, increasing; a picture with guidance has two.
        seconds: of a call with each of these numbers of rows.
        decode_s: of decoding one picture.
        encode_s: of encoding the prompt of one picture.
        knee: the largest worthwhile number of rows in a call; by default what the times say.
        surprises: how far off the last call near each size was, as a log ratio.
        unseen: by size, calls since the last near it.

    Raises ValueError for no measurement, or one that is not positive.
    """

    rows: tuple[int, ...]
    seconds: tuple[float, ...]
    decode_s: float
    encode_s: float = 0.0
    knee: int = 0
    surprises: tuple[float, ...] = ()
    unseen: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.rows or len(self.rows) != len(self.seconds):
            raise ValueError("Costs need as many numbers of rows as times, and at least one.")
        if list(self.rows) != sorted(set(self.rows)) or self.rows[0] < 1:
            raise ValueError("The numbers of rows must be positive and increase.")
        if min(*self.seconds, 1) <= 0 or min(self.decode_s, self.encode_s) < 0:
            raise ValueError("Times must be positive.")
        object.__setattr__(self, "knee", self.knee or self._worthwhile())
        object.__setattr__(self, "surprises", self.surprises or (0.0,) * len(self.rows))
        object.__setattr__(self, "unseen", self.unseen or (0,) * len(self.rows))

    def tick(self, rows: int) -> float:
        """Seconds of a call: interpolated between sizes, and in proportion to the rows beyond the largest."""
        seconds = sum(share * self.seconds[size] for size, share in self._neighbours(rows))
        return seconds * max(1.0, rows / self.rows[-1])

    def room(self, waiting: int) -> int:
        """The rows that the next call may have where so many wait: the knee, as a rule.

        Where more wait, and no call had a size next to the knee for EXPLORING calls, it is that size:
        otherwise nobody would notice that the knee is wrong.
        """
        at = bisect_left(self.rows, self.knee)
        for size in (at + 1, at - 1):
            if 0 <= size < len(self.rows) and self.unseen[size] >= EXPLORING and waiting > self.knee:
                rows = self.rows[size]
                if 2 <= rows <= waiting and self.tick(self.knee) * rows / self.knee <= LONGEST_S:
                    return rows
        return self.knee

    def learn(self, rows: int, seconds: float) -> "Costs":
        """Return the costs after a call with so many rows took `seconds`: a little nearer to that.

        They move only as far as the last call of this size was off to the same side, too, so a single slow
        call changes nothing. Times stay increasing: what contradicts the latest call gives way.
        """
        octaves = [abs(log2(size / rows)) for size in self.rows]
        nearest = octaves.index(min(octaves))
        surprise = max(-LARGEST_SURPRISE, min(log(max(seconds, 1e-9) / self.tick(rows)), LARGEST_SURPRISE))
        move = LEARNING * sorted((0.0, surprise, self.surprises[nearest]))[1]
        times = [s * exp(move * FOLLOWING**far) for s, far in zip(self.seconds, octaves, strict=True)]
        times = [*accumulate(times, max)] if move > 0 else [*accumulate(times[::-1], min)][::-1]
        surprises, unseen = list(self.surprises), [calls + 1 for calls in self.unseen]
        surprises[nearest] = surprise
        if surprise > -WORTH:  # a size that was faster than thought is tried again at once
            unseen[nearest] = 0
        return replace(
            self, seconds=tuple(times), surprises=tuple(surprises), unseen=tuple(unseen)
        )._move_knee(self.rows[nearest] if surprise < WORTH else 0)

    def _move_knee(self, called: int) -> "Costs":
        """The costs with the knee that fits the times, and a size above it, as slow as it can be.

        called: size of a call that took no longer than thought; the knee grows no further than to that.
        """
        fewest = self._worthwhile(WORTH + HYSTERESIS, LONGEST_S / (1 + HYSTERESIS))
        most = self._worthwhile(WORTH - HYSTERESIS, LONGEST_S * (1 + HYSTERESIS))
        new = replace(self, knee=min(max(self.knee, min(fewest, called)), most))
        if new.knee < self.rows[-1] or 2 * self.rows[-1] > MAX_ROWS:
            return new
        return replace(
            new,
            rows=(*self.rows, 2 * self.rows[-1]),
            seconds=(*self.seconds, 2 * self.seconds[-1]),
            surprises=(*self.surprises, 0.0),
            unseen=(*self.unseen, 0),
        )

    def _worthwhile(self, worth: float = WORTH, longest_s: float = LONGEST_S) -> int:
        """The smallest number of rows, 2 at least, that does nearly as much work a second as any."""
        rates = {
            rows: rows / seconds
            for rows, seconds in zip(self.rows, self.seconds, strict=True)
            if seconds <= longest_s or rows <= max(2, self.rows[0])
        }
        best = max(rates.values())
        return max(2, next(rows for rows, rate in rates.items() if (1 + worth) * rate >= best))

    def _neighbours(self, rows: int) -> tuple[tuple[int, float], ...]:
        """The positions of the sizes next to a number of rows, each with its share in interpolating."""
        right = bisect_left(self.rows, rows)
        if right in (0, len(self.rows)):
            return ((min(right, len(self.rows) - 1), 1.0),)
        share = (rows - self.rows[right - 1]) / (self.rows[right] - self.rows[right - 1])
        return ((right - 1, 1 - share), (right, share))
