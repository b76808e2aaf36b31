"""The words of the study's own pages, by language; a study file's [words] can replace them.

Participants read only these and the study file's own texts: the app's other messages are replaced by one of
these labels before they reach a study's page.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

LABELS: dict[str, dict[str, str]] = tomllib.loads(
    Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
)
INSTEAD = {"crowded": "busy"}
"""Labels that study files of earlier versions lack, and those that stand for them there."""
PLACES = re.compile(r"\{(\w+)\}")
"""Where a value goes into a label, such as {count}."""


def fill(label: str, **values: object) -> str:
    """Put values into the placeholders of a label."""
    return PLACES.sub(lambda place: str(values[place[1]]), label)


def words_in(language: str) -> Mapping[str, str]:
    """Return the labels in a language or a variant of it, such as de-AT; empty if the language is unknown."""
    return LABELS.get(language.partition("-")[0].lower(), {})


def check_places(words: Mapping[str, str]) -> dict[str, str]:
    """Return a fault for each label whose placeholders differ from the English label's."""
    faults = {}
    for name in words.keys() & LABELS["en"].keys():
        english = LABELS["en"][name]
        places = set(PLACES.findall(english))
        if set(PLACES.findall(words[name])) != places:
            needed = " and ".join(f"{{{each}}}" for each in sorted(places)) or "nothing in braces"
            faults[name] = f"must have {needed} in it, as “{english}” has"
    return faults
