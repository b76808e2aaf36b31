"""The words of the study's own pages, by language; a study file's [words] can have others in their place.

All that a participant is told comes from here or from the study file: what the app says elsewhere, in its own
words, is replaced by one of these sentences before it gets to a study's page.
"""

import re
from collections.abc import Iterator, Mapping

_ENGLISH = {
    "login_welcome": "Please log in to take part.",
    "login_name": "Name",
    "login_password": "Password",
    "login_log_in": "Log in",
    "login_wrong": "Name and password do not fit.",
    "login_silent": "There was no answer. Please try again.",
    "agree": "I have read this and want to take part",
    "keep_words": "What I write in my own words may be kept, too",
    "start": "Start",
    "practice": "Practice",
    "trial": "Picture {place} of {count}",
    "task": "Make a picture of this",
    "goal": "Make this picture; the words are up to you",
    "how": "Look at the pictures. If none is right, ask for others. When one is, say so.",
    "satisfied": "I am satisfied with this picture",
    "give_up": "I give up",
    "time_out": "The time for this picture is over.",
    "soon_title": "One moment, please",
    "soon": "Pictures can't be made just yet. This goes on by itself, and your time only begins then.",
    "pick_first": "Open the picture that you are satisfied with first.",
    "rate": "About this picture",
    "rate_all": "Please answer each question.",
    "next": "Continue",
    "closing": "A last few questions",
    "closing_note": "Leave out what you would rather not answer.",
    "thanks": "Thank you!",
    "code": "This is your withdrawal code. Whoever runs the study deletes all that you did when you name it. "
    "Nobody can look it up, so please write it down.",
    "again": "This page is out of date. Please load it again.",
    "left": "{seconds} s left",
    "ask": "Show me pictures",
    "words": "Your words for it",
    "say": "Say what you would like to see.",
    "pictures": "Pictures",
    "none": "The pictures appear here.",
    "coming": "Pictures are on their way …",
    "there": "{count} pictures. Keys 1 to {count} choose one, Enter opens it.",
    "there_one": "One picture. Key 1 chooses it, Enter opens it.",
    "choose": "Choose a picture first, with the keys 1 to 8.",
    "others": "Others",
    "others_beside": "Others beside what I keep",
    "all_others": "All others",
    "cancel": "Cancel",
    "called_off": "Cancelled.",
    "keep": "Keep",
    "kept": "Kept",
    "open": "Open",
    "picture": "picture {place}",
    "missing": "not there",
    "not_made": "Not made",
    "large": "Open a picture to see it large.",
    "finishing": "Being finished, {percent} %.",
    "finished": "The picture is finished.",
    "not_finished": "This picture was not finished. Open it again, or another one.",
    "gave_up": "You have given this picture up.",
    "go_on": "Go on when you are ready.",
    "code_title": "Your withdrawal code",
    "copy": "Copy",
    "copied": "Copied.",
    "problem": "That did not work just now. Please try again.",
    "busy": "Many are making pictures just now. Please try again in a moment.",
    "broken": "Pictures can't be made just now. Please tell whoever runs the study.",
    "lost": "The connection is lost. Trying again …",
    "close": "Close this message",
    "anew": "The program was interrupted. This picture begins again; everything before it is kept.",
    "keys": "1–8 choose · Enter opens · R others · K keeps · S satisfied",
}
_GERMAN = {
    "login_welcome": "Bitte melden Sie sich an, um teilzunehmen.",
    "login_name": "Name",
    "login_password": "Passwort",
    "login_log_in": "Anmelden",
    "login_wrong": "Name und Passwort passen nicht zusammen.",
    "login_silent": "Es kam keine Antwort. Bitte versuchen Sie es noch einmal.",
    "agree": "Ich habe dies gelesen und möchte teilnehmen",
    "keep_words": "Auch was ich in eigenen Worten schreibe, darf aufbewahrt werden",
    "start": "Beginnen",
    "practice": "Übung",
    "trial": "Bild {place} von {count}",
    "task": "Machen Sie hiervon ein Bild",
    "goal": "Machen Sie dieses Bild; die Worte wählen Sie selbst",
    "how": "Ist keines der Bilder das richtige, holen Sie andere. Ist eines es, sagen Sie es.",
    "satisfied": "Mit diesem Bild bin ich zufrieden",
    "give_up": "Ich gebe auf",
    "time_out": "Die Zeit für dieses Bild ist um.",
    "soon_title": "Einen Moment, bitte",
    "soon": "Noch gibt es keine Bilder. Es geht von selbst weiter, und erst dann beginnt Ihre Zeit.",
    "pick_first": "Öffnen Sie zuerst das Bild, mit dem Sie zufrieden sind.",
    "rate": "Zu diesem Bild",
    "rate_all": "Bitte beantworten Sie jede Frage.",
    "next": "Weiter",
    "closing": "Noch einige Fragen",
    "closing_note": "Lassen Sie aus, was Sie nicht beantworten möchten.",
    "thanks": "Vielen Dank!",
    "code": "Dies ist Ihr Widerrufscode. Wer die Studie leitet, löscht alles von Ihnen, wenn Sie ihn nennen. "
    "Niemand kann ihn nachschlagen; bitte schreiben Sie ihn auf.",
    "again": "Diese Seite ist veraltet. Bitte laden Sie sie neu.",
    "left": "noch {seconds} s",
    "ask": "Bilder zeigen",
    "words": "Ihre Worte dafür",
    "say": "Sagen Sie, was Sie sehen möchten.",
    "pictures": "Bilder",
    "none": "Hier erscheinen die Bilder.",
    "coming": "Die Bilder sind unterwegs …",
    "there": "{count} Bilder. Die Tasten 1 bis {count} wählen eines, Enter öffnet es.",
    "there_one": "Ein Bild. Die Taste 1 wählt es, Enter öffnet es.",
    "choose": "Wählen Sie zuerst ein Bild, mit den Tasten 1 bis 8.",
    "others": "Andere",
    "others_beside": "Andere neben den behaltenen",
    "all_others": "Lauter andere",
    "cancel": "Abbrechen",
    "called_off": "Abgebrochen.",
    "keep": "Behalten",
    "kept": "Behalten ✓",
    "open": "Öffnen",
    "picture": "Bild {place}",
    "missing": "nicht da",
    "not_made": "Nicht gemacht",
    "large": "Öffnen Sie ein Bild, um es groß zu sehen.",
    "finishing": "Wird fertig, {percent} %.",
    "finished": "Das Bild ist fertig.",
    "not_finished": "Dieses Bild wurde nicht fertig. Öffnen Sie es noch einmal, oder ein anderes.",
    "gave_up": "Sie haben dieses Bild aufgegeben.",
    "go_on": "Weiter geht es, wenn Sie so weit sind.",
    "code_title": "Ihr Widerrufscode",
    "copy": "Kopieren",
    "copied": "Kopiert.",
    "problem": "Das ging gerade nicht. Bitte versuchen Sie es noch einmal.",
    "busy": "Gerade machen viele Bilder. Bitte versuchen Sie es gleich noch einmal.",
    "broken": "Gerade entstehen keine Bilder. Bitte sagen Sie es der Studienleitung.",
    "lost": "Die Verbindung ist unterbrochen. Es wird weiter versucht …",
    "close": "Meldung schließen",
    "anew": "Das Programm wurde unterbrochen. Dieses Bild beginnt noch einmal; alles davor ist aufbewahrt.",
    "keys": "1–8 wählen · Enter öffnet · R andere · K behält · S zufrieden",
}
LABELS = {"en": _ENGLISH, "de": _GERMAN}

PLACES = re.compile(r"\{(\w+)\}")
"""Where a label has something put in, such as {count}."""


def fill(label: str, **values: object) -> str:
    """The label with values in its places."""
    return PLACES.sub(lambda place: str(values[place[1]]), label)


def words_in(language: str) -> Mapping[str, str]:
    """The words in a language or a variant of it, such as de-AT; none where there are none."""
    return LABELS.get(language.partition("-")[0].lower(), {})


def faults_of(language: str, words: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """What is wrong with a study's `words`: which key, and why."""
    for name, text in words.items():
        if not isinstance(text, str) or not text.strip():
            yield name, "must be text, and not empty"
        elif name in _ENGLISH and set(PLACES.findall(text)) != (
            places := set(PLACES.findall(_ENGLISH[name]))
        ):
            wanted = " and ".join(f"{{{each}}}" for each in sorted(places)) or "nothing in braces"
            yield name, f"must have {wanted} in it, as “{_ENGLISH[name]}” has"
    left = [name for name in _ENGLISH if name not in words]
    if not words_in(language) and left:
        known = " and ".join(LABELS)
        yield (
            "",
            f"there are no words in {language!r}, only in {known}: [words] must have all of them, as "
            f"`python -m app.study words` shows. Missing: {', '.join(left)}",
        )
