"""Example prompts, and random ones of words that the embedded model knows."""

import random

EXAMPLES = (
    "snowy mountains at sunset with a lake and a cabin",
    "a lighthouse by the sea at night",
    "desert dunes with cacti and a balloon",
    "foggy autumn hills with a windmill",
)

# One choice of each row, in this order, makes a prompt; an empty choice leaves it out.
PHRASES = (
    "snowy mountains|green hills|desert dunes|a volcano|autumn hills|red mesas|a grassy plain",
    " at dawn| at sunset| at dusk| at night| by day",
    " with a lake| with a river| by the sea|",
    " and a cabin| and a lighthouse| and a windmill| and a castle| and a tent| and fir trees|",
    " in the fog| in the rain| under a full moon| under a clear sky| with birds|",
)


def surprise() -> str:
    """Return a random prompt."""
    return "".join(random.choice(row.split("|")) for row in PHRASES)
