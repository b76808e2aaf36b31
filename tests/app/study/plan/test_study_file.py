"""A study file is read, or everything wrong with it is reported with its line."""

from pathlib import Path

import pytest

from app.study.plan.labels import LABELS, check_places
from app.study.plan.study_file import EXAMPLE, StudyError, read_study


def faults(tmp_path: Path, text: str) -> dict[int, str]:
    """What is said of a file, by line."""
    path = tmp_path / "study.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(StudyError) as caught:
        read_study(path)
    found: dict[int, str] = {}
    for each in str(caught.value).splitlines():
        place, words = each.removeprefix(f"{path}, line ").split(": ", 1)
        found[int(place)] = found.get(int(place), "") + words
    return found


def edited(*changes: tuple[str, str]) -> tuple[str, list[int]]:
    """The example with changes made, and the line of each."""
    text, lines = EXAMPLE.read_text(encoding="utf-8"), []
    for old, new in changes:
        assert text.count(old) >= 1, old
        lines.append(text[: text.index(old)].count("\n") + 1)
        text = text.replace(old, new, 1)
    return text, lines


def test_the_example_is_a_study() -> None:
    study = read_study(EXAMPLE)
    assert len(study.tasks) == 8 and len(study.conditions) == 4
    conditions = {each.id: each for each in study.conditions}
    assert conditions["one"].count == 1 and conditions["consistency"].speculate
    assert conditions["full"].shown == conditions["full"].final == ("dpm++2m", 40)
    assert conditions["consistency"].shown == ("consistency", 6)
    assert study.analysis.margin == 0.5 and study.texts == {"remarks"}


def test_the_digest_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(edited(("margin = 0.5", "margin = 0.4"))[0], encoding="utf-8")
    assert read_study(path).digest != read_study(EXAMPLE).digest
    assert read_study(EXAMPLE).digest == read_study(EXAMPLE).digest


def test_all_faults_are_reported_at_once_with_their_lines(tmp_path: Path) -> None:
    text, lines = edited(
        ("time_cap_s = 180", "time_cap = 180"),
        ("retention_days = 180", "retention_days = 0"),
        ('id = "dunes"', 'id = "snow"'),
        ("count = 1", 'count = "one"'),
        ('solver = "dpm++2m"', 'solver = "dpm++2n"'),
        ("points = 7", "points = 70"),
        ('control = "full"', 'control = "ful"'),
    )
    found = faults(tmp_path, text)
    assert sorted(found) == lines
    said = [found[line] for line in lines]
    assert "Did you mean time_cap_s?" in said[0]
    assert "from 1 to 3650" in said[1]
    assert "twice" in said[2]
    assert "a whole number" in said[3] and "'one'" in said[3]
    assert "Did you mean 'dpm++2m'?" in said[4]
    assert "from 2 to 11" in said[5]
    assert "Did you mean 'full'?" in said[6]


def test_errors_of_syntax_do_not_hide_the_others(tmp_path: Path) -> None:
    text, lines = edited(("keep_pictures = false", "keep_pictures = maybe"), ("margin = 0.5", "margin = 50"))
    assert sorted(faults(tmp_path, text)) == lines


def test_an_unreadable_line_causes_no_further_faults(tmp_path: Path) -> None:
    text, lines = edited(
        ('title = "Making', "title = Making"), ("retention_days = 180", "retention_days = 0")
    )
    assert sorted(faults(tmp_path, text)) == lines
    text, lines = edited(("[[ratings]]", "[[ratings]"))
    assert sorted(faults(tmp_path, text)) == lines


def test_a_string_that_never_ends_is_one_fault(tmp_path: Path) -> None:
    assert len(faults(tmp_path, 'title = """\nno end\n')) == 1


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('goal = "A picture to calm somebody down."', "", "either a prompt or a goal"),
        (
            '[[tasks]]\nid = "book"\ngoal = "A picture for the cover of an adventure book."\n',
            "",
            "shared out",
        ),
        ('id = "one"\nmode = "full"', 'id = "one"\nmode = "full"\nsteps = 4', "full_steps"),
        ('treatment = "consistency"', 'treatment = "full"', "with itself"),
        ("give_up_after_s = 20", "give_up_after_s = 200", "time cap"),
        ('id = "snow"', 'id = "Snow and Ice"', "small letters"),
        ('quality = "satisfaction"\n', "", "'analysis.quality' is missing"),
        ("keep_pictures = false", "keep_pictures = 0", "true or false"),
        ('choices = ["never before", ', 'choices = [3, "never before", ', "must be text"),
        ('choices = ["never before", ', 'choices = ["every day", ', "twice among the choices"),
        ("margin = 0.5", "margin = 6", "less than 6"),
    ],
)
def test_contradictions_are_reported(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert words in " ".join(faults(tmp_path, edited((old, new))[0]).values())


def test_other_files_are_refused(tmp_path: Path) -> None:
    assert "title" in " ".join(faults(tmp_path, "").values())
    assert "must be a list" in faults(tmp_path, "tasks = 3\n")[1]
    assert "must be a table" in " ".join(faults(tmp_path, "tasks = [3]\nanalysis = 1\n").values())
    with pytest.raises(StudyError, match="can't be read"):
        read_study(tmp_path / "nowhere.toml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StudyError, match="not text"):
        read_study(tmp_path / "binary")


def test_a_key_inside_a_text_is_not_taken_for_its_line(tmp_path: Path) -> None:
    text, _ = edited(("You will make", "margin = 3\nYou will make"), ("margin = 0.5", "margin = 50"))
    assert sorted(faults(tmp_path, text)) == [text.split("\n").index("margin = 50") + 1]


def test_a_files_words_replace_the_labels(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    text = EXAMPLE.read_text(encoding="utf-8")
    path.write_text(f'language = "de-AT"\n{text}\n[words]\nstart = "Los"\n', encoding="utf-8")
    labels = read_study(path).labels
    assert labels == {**LABELS["de"], "start": "Los"}


def test_all_languages_have_the_same_words_with_the_same_places() -> None:
    for words in LABELS.values():
        assert words.keys() == LABELS["en"].keys()
        assert check_places(words) == {}


def test_another_language_needs_all_words(tmp_path: Path) -> None:
    whole = "".join(f"{name} = {text!r}\n" for name, text in LABELS["de"].items())
    text = f'language = "nl"\n{EXAMPLE.read_text(encoding="utf-8")}\n[words]\n{whole}'
    path = tmp_path / "study.toml"
    path.write_text(text, encoding="utf-8")
    assert read_study(path).labels == LABELS["de"]
    short = text.replace(f"start = {LABELS['de']['start']!r}\n", "")
    assert "Missing: start." in faults(tmp_path, short)[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ('strat = "Go"', "Did you mean start?"),
        ('start = ""', "not empty"),
        ("start = 3", "must be text"),
        ('trial = "Picture {place}"', "{count} and {place}"),
        ('start = "Go {now}"', "nothing in braces"),
    ],
)
def test_unusable_words_are_reported_with_their_line(tmp_path: Path, words: str, said: str) -> None:
    text = f"{EXAMPLE.read_text(encoding='utf-8')}\n[words]\n{words}\n"
    assert said in faults(tmp_path, text)[text.count("\n")]
    wrong = text.replace(f"[words]\n{words}\n", "").replace("title =", "words = 3\ntitle =", 1)
    assert "must be a table" in " ".join(faults(tmp_path, wrong).values())


def test_a_language_is_a_tag(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, edited(("title =", 'language = "de_AT"\ntitle ='))[0]).values()
    assert "de or fr-CA" in fault and "Missing" not in fault


def test_a_wrong_entry_does_not_make_its_list_too_short(tmp_path: Path) -> None:
    conditions = """
[[conditions]]
id = "full"
mode = "full"
count = 0
[[conditions]]
id = "quick"
mode = "preview"
"""
    found = faults(tmp_path, conditions)
    assert "from 1 to" in found[5] and "at least 2" not in "".join(found.values())
    one = faults(tmp_path, conditions[: conditions.rindex("[[")])
    assert "at least 2" in one[2]


def test_the_digest_cannot_be_set(tmp_path: Path) -> None:
    text, lines = edited(("title =", 'digest = "mine"\ntitle ='))
    assert sorted(faults(tmp_path, text)) == lines
