"""Example prompts, and prompts made up from words that the embedded model knows."""

import random

EXAMPLES = (
    "snowy mountains at sunset with a lake and a cabin",
    "a lighthouse by the sea at night",
    "desert dunes with cacti and a balloon",
    "foggy autumn hills with a windmill",
)

# One choice of each row, in this order, makes a sentence; an empty choice leaves it out.
PHRASES = (
    (
        "snowy mountains",
        "green hills",
        "desert dunes",
        "a volcano",
        "autumn hills",
        "red mesas",
        "a grassy plain",
    ),
    (" at dawn", " at sunset", " at dusk", " at night", " by day"),
    (" with a lake", " with a river", " by the sea", ""),
    (
        " and a cabin",
        " and a lighthouse",
        " and a windmill",
        " and a castle",
        " and a tent",
        " and fir trees",
        "",
    ),
    (" in the fog", " in the rain", " under a full moon", " under a clear sky", " with birds", ""),
)


def surprise(rng: random.Random | None = None) -> str:
    """A prompt that nobody asked for."""
    rng = rng or random.Random()
    return "".join(rng.choice(choices) for choices in PHRASES)
