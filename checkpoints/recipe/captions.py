"""Says a scene in many ways: synonyms, orders, omissions, short and long.

A caption names some of the scene's attributes and leaves the rest open. `caption` returns both the words and
what they name, so that a picture can be held against exactly what was asked of it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from checkpoints.recipe.scenes import ABSENT, Scene

TIMES = {
    "dawn": ["at dawn", "at sunrise", "in the early morning", "at daybreak", "in the morning", "in morning light", "as the day begins"],
    "day": ["by day", "at noon", "in the daytime", "at midday", "on a bright day", "in the afternoon", "in daylight", "on a fine day"],
    "sunset": ["at sunset", "at sundown", "in the golden hour", "in sunset light", "under an orange sky", "under a red sky", "as the sun sets"],
    "dusk": ["at dusk", "in the evening", "at twilight", "in the blue hour", "in the late evening", "at nightfall", "under a purple sky"],
    "night": ["at night", "at midnight", "in the dark", "by night", "late at night", "in the middle of the night", "under a night sky"],
}  # fmt: skip
HEADS = {
    "mountains": ["mountains", "a mountain range", "mountain peaks", "tall mountains", "alps", "rocky mountains", "a mountain landscape", "mountain"],
    "hills": ["hills", "rolling hills", "gentle hills", "a hilly landscape", "a hilly countryside", "low hills", "hill"],
    "dunes": ["sand dunes", "dunes", "a desert with dunes", "a sandy desert", "a dune desert", "desert dunes", "sahara dunes"],
    "mesa": ["mesas", "a canyon landscape", "red rock mesas", "buttes", "table mountains", "a red rock desert", "red cliffs", "a canyon"],
    "volcano": ["a volcano", "an erupting volcano", "a smoking volcano", "a volcano with lava", "a fiery volcano", "a volcanic mountain", "volcano"],
    "plain": ["a plain", "flat land", "a flat landscape", "a wide plain", "a flat countryside", "open fields", "a prairie", "level ground"],
}  # fmt: skip
GROUNDS = {
    "grass": (["green", "grassy", "lush", "summer"], ["in summer", "with green grass", "with green meadows", "a green meadow", "in spring", "grassland"]),
    "autumn": (["autumn", "autumnal", "fall"], ["in autumn", "in fall", "in autumn colors", "with brown grass", "in october", "with fall colors"]),
    "snow": (["snowy", "snow covered", "wintry", "winter", "snowcapped"], ["in winter", "covered in snow", "in the snow", "with snow on the ground", "under snow", "in december"]),
    "sand": (["sandy", "dry", "arid"], ["with sand", "with sandy ground", "on sand", "with a sandy floor", "on dry ground"]),
}  # fmt: skip
"""Ground -> (adjectives before the terrain, phrases after it)."""
THINGS = {
    ("water", "lake"): ["a lake", "a blue lake", "a pond", "a calm lake", "a mountain lake", "lake"],
    ("water", "river"): ["a river", "a winding river", "a stream", "a creek", "a brook", "a flowing river", "river"],
    ("water", "sea"): ["the sea", "the ocean", "a beach", "a bay", "a coast", "the seaside", "a shore", "ocean waves", "a beach by the sea", "water"],
    ("vegetation", "firs"): ["fir trees", "firs", "pines", "pine trees", "spruces", "conifers", "evergreens", "a pine forest", "christmas trees"],
    ("vegetation", "leafy"): ["leafy trees", "oaks", "oak trees", "round trees", "maple trees", "a leafy forest", "deciduous trees", "apple trees"],
    ("vegetation", "blossom"): ["cherry trees in blossom", "cherry blossoms", "pink trees", "blossoming trees", "sakura", "blooming cherry trees"],
    ("vegetation", "palms"): ["palm trees", "palms", "coconut palms", "tropical palms", "tropical trees"],
    ("vegetation", "cacti"): ["cacti", "cactuses", "a cactus", "saguaros", "saguaro cacti"],
    ("building", "cabin"): ["a cabin", "a log cabin", "a wooden house", "a cottage", "a small house", "a hut", "a house", "a wooden cabin"],
    ("building", "lighthouse"): ["a lighthouse", "a striped lighthouse", "a red and white lighthouse", "lighthouse"],
    ("building", "windmill"): ["a windmill", "an old windmill", "a mill", "a white windmill"],
    ("building", "castle"): ["a castle", "a fortress", "a medieval castle", "a castle with towers", "a palace"],
    ("building", "tent"): ["a tent", "a camping tent", "an orange tent", "a camp", "a campsite"],
    ("boat", "sailboat"): ["a sailboat", "a boat", "a sailing boat", "a ship", "a yacht", "a small boat"],
    ("birds", "birds"): ["birds", "a flock of birds", "flying birds", "gulls", "seagulls", "birds in the sky"],
    ("light", "sun"): ["the sun", "a bright sun", "the sun in the sky", "sun"],
    ("light", "moon"): ["a full moon", "the full moon", "a round moon", "a bright full moon"],
    ("light", "crescent"): ["a crescent moon", "a crescent", "a half moon", "a thin moon", "a sickle moon"],
    ("stars", "stars"): ["stars", "a starry sky", "many stars", "twinkling stars", "stars in the sky"],
    ("clouds", "clear"): ["a clear sky", "a cloudless sky", "no clouds", "clear skies"],
    ("clouds", "scattered"): ["some clouds", "scattered clouds", "fluffy clouds", "white clouds", "a few clouds", "puffy clouds"],
    ("clouds", "overcast"): ["an overcast sky", "heavy clouds", "grey clouds", "a cloudy sky", "dark clouds", "storm clouds", "a gray sky"],
    ("weather", "fog"): ["fog", "mist", "morning mist", "low fog", "thick fog", "haze"],
    ("weather", "rain"): ["rain", "falling rain", "heavy rain", "a rain shower", "a drizzle"],
    ("weather", "snowfall"): ["falling snow", "snowflakes", "snowfall", "a snowstorm", "snow falling from the sky"],
    ("feature", "rainbow"): ["a rainbow", "a colorful rainbow", "a bright rainbow"],
    ("feature", "aurora"): ["an aurora", "northern lights", "the northern lights", "a green aurora", "aurora borealis", "polar lights"],
    ("feature", "balloon"): ["a hot air balloon", "a balloon", "a striped balloon", "a hot air balloon in the sky"],
    ("feature", "meteor"): ["a shooting star", "a falling star", "a meteor", "a comet"],
    ("feature", "lightning"): ["lightning", "a lightning bolt", "a flash of lightning", "a thunderstorm", "a bolt of lightning"],
    ("flowers", "flowers"): ["flowers", "wildflowers", "blooming flowers", "colorful flowers", "a flower meadow", "wild flowers"],
    ("path", "path"): ["a path", "a winding path", "a trail", "a road", "a dirt road", "a footpath", "a country road"],
}  # fmt: skip
"""(attribute, value) -> noun phrases. Times, terrains and grounds are said differently, above."""
WEATHERS = {
    "fog": ["in the fog", "on a foggy day", "in mist", "misty", "foggy", "hazy"],
    "rain": ["in the rain", "on a rainy day", "rainy", "while it rains"],
    "snowfall": ["while it snows", "snowing", "in falling snow", "in a snowstorm"],
}
SKIES = {
    "clear": ["under a clear sky", "under a cloudless sky", "clear", "sunny and clear"],
    "scattered": ["under fluffy clouds", "under some clouds", "partly cloudy"],
    "overcast": ["under grey clouds", "under an overcast sky", "cloudy", "overcast", "stormy", "gloomy"],
}
MISSING = {
    "water": ["no water", "without water"],
    "vegetation": ["no trees", "without trees"],
    "building": ["no buildings", "no houses", "without houses"],
    "birds": ["no birds", "without birds"],
    "stars": ["no stars"],
    "boat": ["no boat", "without boats"],
    "flowers": ["no flowers"],
}  # fmt: skip
SAILING = ["and a boat on it", "and a sailboat on it", "and a boat on the water", "with a sailboat"]
OPENINGS = ["a picture of", "an illustration of", "a landscape with", "a view of", "a scene with", "a painting of", "a drawing of", "a photo of", "an image of", "a postcard of"]  # fmt: skip
PRAISE = ["beautiful", "quiet", "peaceful", "scenic", "lovely", "calm", "majestic", "pretty", "colorful", "dreamy", "serene", "minimalist", "flat", "cozy"]  # fmt: skip
TAILS = ["landscape", "flat illustration", "scenery", "wallpaper", "vector art", "digital art", "high quality", "detailed", "nature", "4k", "wide view"]  # fmt: skip
FUNCTION_WORDS = ["and", "in", "the", "background", "foreground", "there", "is", "are", "near", "next", "to", "by", "beside", "behind", "front", "of", "on", "with", "under", "over", "some", "many", "two", "several", "small", "large", "big", "little", "old", "white", "my", "i", "want", "show", "me", "please", "very", "it", "at", "from", "above", "below", "left", "right", "side", "distance", "far", "away", "where", "you", "can", "see"]  # fmt: skip

PRESENCE = {
    "time": 0.75,
    "terrain": 0.85,
    "ground": 0.55,
    "clouds": 0.35,
    "stars": 0.5,
    "birds": 0.5,
    "path": 0.5,
}
"""How often an attribute that has something to say is said, in captions of middling length; others 0.65."""


def named_attributes(scene: Scene, rng: np.random.Generator) -> dict[str, str]:
    """Choose what a caption of this scene will say."""
    generosity = rng.choice((0.35, 0.8, 1.0, 1.5), p=(0.2, 0.3, 0.3, 0.2))
    named = {}
    for attribute, value in asdict(scene).items():
        if value in ABSENT:
            said = attribute in MISSING and rng.random() < 0.03
            if attribute == "boat" and scene.water not in ("lake", "sea"):
                said = False
        else:
            said = rng.random() < min(PRESENCE.get(attribute, 0.65) * generosity, 0.97)
        if said:
            named[attribute] = value
    return named


def _thing(attribute: str, value: str, rng: np.random.Generator) -> str:
    if value in ABSENT:
        return str(rng.choice(MISSING[attribute]))
    return str(rng.choice(THINGS[attribute, value]))


def _as_tags(named: dict[str, str], rng: np.random.Generator) -> str:
    """Fragments in any order, separated by commas: how many people type."""
    said = []
    for attribute, value in named.items():
        if attribute == "time":
            phrase = str(rng.choice(TIMES[value]))
            said.append(
                phrase.split()[-1] if value not in ("sunset", "day") and rng.random() < 0.3 else phrase
            )
            if value == "sunset" and rng.random() < 0.5:
                said[-1] = "sunset"
        elif attribute == "terrain":
            said.append(str(rng.choice(HEADS[value])))
        elif attribute == "ground":
            said.append(str(rng.choice(GROUNDS[value][rng.integers(2)])))
        elif attribute == "weather" and value != "calm" and rng.random() < 0.4:
            said.append(str(rng.choice(WEATHERS[value])))
        elif attribute == "clouds" and rng.random() < 0.4:
            said.append(str(rng.choice(SKIES[value])))
        else:
            said.append(_thing(attribute, value, rng))
    order = rng.permutation(len(said))
    said = [said[i] for i in order]
    if rng.random() < 0.25:
        said.append(str(rng.choice(TAILS)))
    if rng.random() < 0.4:  # keywords: no articles, perhaps no commas
        said = [" ".join(w for w in phrase.split() if w not in ("a", "an", "the")) for phrase in said]
        return (" " if rng.random() < 0.3 else ", ").join(said)
    return ", ".join(said)


def _as_sentence(named: dict[str, str], rng: np.random.Generator) -> str:
    """One flowing phrase: ground and terrain, the hour, then everything else after "with"."""
    rest = dict(named)
    head = (
        str(rng.choice(HEADS[rest["terrain"]]))
        if "terrain" in rest
        else str(rng.choice(["a landscape", "landscape", "a scene", "scenery"]))
    )
    rest.pop("terrain", None)
    after = []
    if "ground" in rest:
        adjectives, phrases = GROUNDS[rest["ground"]]
        if rng.random() < 0.65:
            article, _, noun = head.partition(" ")
            adjective = str(rng.choice(adjectives))
            lead = "an" if adjective[0] in "aeiou" else "a"
            head = f"{lead} {adjective} {noun}" if article in ("a", "an") else f"{adjective} {head}"
        else:
            after.append(str(rng.choice(phrases)))
        del rest["ground"]
    if "time" in rest:
        after.insert(int(rng.integers(len(after) + 1)), str(rng.choice(TIMES[rest.pop("time")])))
    if rest.get("weather", "calm") != "calm" and rng.random() < 0.5:
        after.append(str(rng.choice(WEATHERS[rest.pop("weather")])))
    if "clouds" in rest and rng.random() < 0.5:
        after.append(str(rng.choice(SKIES[rest.pop("clouds")])))
    things = []
    sailing = rest.get("boat") == "sailboat" and rest.get("water") in ("lake", "sea") and rng.random() < 0.4
    if sailing:
        things.append(f"{_thing('water', rest.pop('water'), rng)} {rng.choice(SAILING)}")
        del rest["boat"]
    things += [_thing(attribute, value, rng) for attribute, value in rest.items()]
    things = [things[i] for i in rng.permutation(len(things))]
    joined = ", ".join(things[:-1]) + (" and " if len(things) > 1 else "") + things[-1] if things else ""
    if rng.random() < 0.25 and head.split()[0] not in ("a", "an"):
        head = f"{rng.choice(PRAISE)} {head}"
    if rng.random() < 0.25:
        head = f"{rng.choice(OPENINGS)} {head}"
    link = str(rng.choice(["with", "with", "with", ", with", ",", "and"])) if joined else ""
    if rng.random() < 0.25 and joined:  # the hour may come last
        return f"{head} {link} {joined} {' '.join(after)}"
    return f"{head} {' '.join(after)} {link} {joined}"


def caption(scene: Scene, rng: np.random.Generator) -> tuple[str, dict[str, str]]:
    """One way of saying the scene.

    Returns:
        The words, lower case, and the attributes that they name (attribute -> value).
    """
    named = named_attributes(scene, rng)
    if not named:
        named = {"terrain": scene.terrain}
    words = _as_sentence(named, rng) if rng.random() < 0.6 else _as_tags(named, rng)
    return " ".join(words.replace(" ,", ",").split()), named


def vocabulary() -> list[str]:
    """Every word that a caption can contain, and the small words that people put between them, sorted."""
    tables = (TIMES, HEADS, THINGS, WEATHERS, SKIES, MISSING)
    lists = [forms for table in tables for forms in dict[Any, list[str]](table).values()]
    phrases = [phrase for forms in lists for phrase in forms]
    phrases += [phrase for pair in GROUNDS.values() for forms in pair for phrase in forms]
    phrases += SAILING + OPENINGS + PRAISE + TAILS + FUNCTION_WORDS + ["landscape", "a landscape", "a scene"]
    return sorted({word for phrase in phrases for word in phrase.split()})
