"""Commands for user studies, from the study file to the report: python -m app.study COMMAND

A log is an SQLite file, a postgresql:// URL, a .jsonl file, or parquet. None of these commands can be reached
through the page.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from app.study.log.store import StoreError, append_all, open_store
from app.study.plan import EXAMPLE, read_study, trials
from app.study.plan.labels import LABELS
from app.study.shared import StudyProblem


def check(options: argparse.Namespace) -> dict[str, Any]:
    """Check a study file, and show the trials of one participant."""
    study = read_study(options.study)
    return {
        "title": study.title,
        "digest": study.digest,
        "trials": [
            {"position": each.position, "condition": each.condition.id, "task": each.task.id}
            for each in trials(study, options.place)
        ],
    }


def words(options: argparse.Namespace) -> dict[str, Any]:
    """Show the words of the study's buttons and messages, which a study file can replace in its [words]."""
    return {"words": dict(LABELS[options.language])}


def export(options: argparse.Namespace) -> dict[str, Any]:
    """Convert a log to JSON lines (.jsonl) or parquet (.parquet)."""
    from app.study.log.reading import read_log, write_jsonl, write_parquet

    writers = {".jsonl": write_jsonl, ".parquet": write_parquet}
    if options.out.suffix not in writers:
        raise StudyProblem(f"--out must end in .jsonl or .parquet, not {options.out.suffix or 'nothing'}.")
    log = read_log(options.log)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    return {"written": writers[options.out.suffix](log.events, options.out), **asdict(log.faults)}


def import_(options: argparse.Namespace) -> dict[str, Any]:
    """Copy the events of one log into another; events that are there already are left as they are."""
    from app.study.log.reading import read_log

    log = read_log(options.source)
    return {"read": append_all(_open(options), log.events)}


def withdraw(options: argparse.Namespace) -> dict[str, Any]:
    """Delete all data of the participant with a withdrawal code."""
    from app.study.log.pictures import delete_pictures
    from app.study.log.withdrawal import participant_of

    participant = participant_of(options.code)
    count = _open(options, must_exist=True).withdraw(participant)
    if not count:
        raise StudyProblem("No participant in this log has that code. A code has 20 letters and digits.")
    return {"events": count, "pictures": delete_pictures(options.log, participant)}


def prune(options: argparse.Namespace) -> dict[str, Any]:
    """Delete participants whose last event is older than a study's retention_days, or than --days."""
    from app.study.log.pictures import delete_orphans

    days = options.days if options.days is not None else read_study(options.study).retention_days
    store = _open(options, must_exist=True)
    return {"events": store.prune(days), "pictures": delete_orphans(options.log, store)}


def status(options: argparse.Namespace) -> dict[str, Any]:
    """Count participants and events of a log, and what is wrong with it."""
    from app.study.log.reading import read_log

    log = read_log(options.log)
    kinds = Counter(event.kind for event in log.events)
    return {
        "participants": len({event.participant for event in log.events}),
        "finished": kinds["session_end"],
        "events": len(log.events),
        "kinds": dict(kinds),
        "faults": asdict(log.faults),
    }


def report(options: argparse.Namespace) -> dict[str, Any]:
    """Analyse a log: write a report as an HTML page, and its tables."""
    from app.study.log.reading import read_log
    from app.study.report.document import write_report

    if not 0 < options.level < 1:
        raise StudyProblem(f"--level must be between 0 and 1, such as 0.95, not {options.level:g}.")
    found = write_report(read_study(options.study), read_log(options.log), options.out, options.level)
    return {
        "report": str(options.out / "report.html"),
        "participants": found.analysed,
        "simulated": found.simulated,
        "ratios": {f"{each.of} / {each.over}": asdict(each.paired) for each in found.ratios},
        "warnings": found.warnings,
    }


def power(options: argparse.Namespace) -> dict[str, Any]:
    """Compute how many participants are needed to find a ratio of times by the paired t test."""
    from app.study.report.power import participants_needed

    return asdict(participants_needed(options.ratio, options.spread, options.power, options.alpha))


def simulate(options: argparse.Namespace) -> dict[str, Any]:
    """Simulate studies with a known effect, and count how often the primary interval contains it."""
    from app.study.report.simulation import Truth, measure_coverage

    study, rows = read_study(options.study), []
    for count in options.participants:
        if count < 2 or options.studies < 1:
            raise StudyProblem("--participants must be at least 2, and --studies at least 1.")
        steps = measure_coverage(study, count, options.studies, Truth(ratio=options.ratio), options.seed)
        for row in tqdm(steps, total=options.studies, desc=f"{count} participants", unit="study"):
            last = row
        rows.append(asdict(last))
    return {"simulated studies": rows}


def participants(options: argparse.Namespace) -> dict[str, Any]:
    """Let programs take part in a study through the running app, and report their times."""
    from app.study.report.goals import MAX_UNSAID
    from app.study.report.simulated_participants import run

    if options.prompts < 1 or options.participants < 1 or options.look < 0:
        raise StudyProblem("--participants and --prompts must be at least 1, and --look at least 0.")
    if not 0 <= options.unsaid <= MAX_UNSAID:
        raise StudyProblem(
            f"--unsaid must be from 0 to {MAX_UNSAID}: a prompt leaves no more of a scene open."
        )
    return run(options)


def _open(options: argparse.Namespace, must_exist: bool = False) -> Any:
    if must_exist and "://" not in options.log and not Path(options.log).exists():
        raise StoreError(f"there is no log {options.log}.")
    store = open_store(options.log)
    dataset = getattr(options, "dataset", None)
    if not dataset:
        return store
    from app.study.log.hub import HubStore

    return HubStore(store, dataset)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows a command's description as it is written, and the defaults that options have."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.default is not None and action.default is not False
        return super()._get_help_string(action) if has_default else action.help


def _argument(*names: str, **options: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    return names, options


_LOG = _argument("log", metavar="LOG", help="SQLite file, postgresql:// URL, .jsonl or parquet")
_STUDY = _argument("--study", type=Path, default=EXAMPLE, metavar="FILE", help="the study file")
_DATASET = _argument("--dataset", metavar="OWNER/NAME", help="delete from this dataset on the Hub as well")
_COUNT: dict[str, Any] = {"type": int, "metavar": "N"}
COMMANDS: dict[Callable[[argparse.Namespace], dict[str, Any]], list[Any]] = {
    check: [
        _argument("study", type=Path, nargs="?", default=EXAMPLE, help="the study file"),
        _argument("--place", **_COUNT, default=0, help="the participant's place in the design"),
    ],
    words: [_argument("--language", choices=tuple(LABELS), default="en", help="of the words")],
    status: [_LOG],
    export: [
        _LOG,
        _argument("--out", type=Path, required=True, metavar="FILE", help="a .jsonl or .parquet file"),
    ],
    import_: [_LOG, _argument("source", metavar="SOURCE", help="the log to copy from")],
    withdraw: [_LOG, _argument("code", metavar="CODE", help="from the study's last page"), _DATASET],
    prune: [
        _LOG,
        _STUDY,
        _argument("--days", type=float, metavar="N", help="instead of the study file's retention_days"),
        _DATASET,
    ],
    report: [
        _LOG,
        _STUDY,
        _argument("--out", type=Path, required=True, metavar="DIR", help="folder of the report"),
        _argument("--level", type=float, default=0.95, metavar="P", help="confidence level"),
    ],
    power: [
        _argument("--ratio", type=float, default=1.85, help="the ratio of times to find"),
        _argument("--spread", type=float, default=0.6, help="standard deviation of participants' log ratios"),
        _argument("--power", type=float, default=0.8, help="probability of finding it"),
        _argument("--alpha", type=float, default=0.05, help="significance level, two-sided"),
    ],
    simulate: [
        _STUDY,
        _argument("--studies", **_COUNT, default=500, help="number of studies"),
        _argument("--participants", **_COUNT, nargs="+", default=[12, 24], help="in each study"),
        _argument("--ratio", type=float, default=0.54, help="the true ratio"),
        _argument("--seed", **_COUNT, default=0, help="of the simulation"),
    ],
    participants: [
        _argument("--url", default="http://127.0.0.1:7860", help="the running app"),
        _argument("--participants", **_COUNT, default=10, help="number of programs"),
        _argument("--prompts", **_COUNT, default=10, help="for each program"),
        _argument("--look", type=float, default=0.4, metavar="S", help="seconds spent on each picture"),
        _argument("--unsaid", **_COUNT, default=0, help="wanted attributes that the prompt does not name"),
        _argument("--out", type=Path, required=True, metavar="DIR", help="folder of the log and the report"),
    ],
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app.study", description=__doc__, formatter_class=_Help)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for run, arguments in COMMANDS.items():
        about = run.__doc__ or ""
        made = commands.add_parser(
            run.__name__.rstrip("_"), help=about, description=about, formatter_class=_Help
        )
        made.set_defaults(run=run)
        made.add_argument("--json", action="store_true", help="print JSON")
        for names, options in arguments:
            made.add_argument(*names, **options)
    return parser


def _show(result: dict[str, Any]) -> None:
    for name, value in result.items():
        if isinstance(value, dict) and value and all(isinstance(each, dict) for each in value.values()):
            value = [f"{part}: {_row(each)}" for part, each in value.items()]
        elif isinstance(value, dict):
            value = [value] if value else []
        if not isinstance(value, list):
            print(f"{name}: {_short(value)}")
            continue
        print(f"{name}:" if value else f"{name}: none")
        for each in value:
            print(f"  {_row(each) if isinstance(each, dict) else each}")


def _row(values: dict[str, Any]) -> str:
    return "  ".join(f"{name}={_short(each)}" for name, each in values.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    try:
        result = options.run(options)
    except StudyProblem as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"{error.filename} can't be used ({error.strerror})." if error.filename else str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    if options.json:
        print(json.dumps(result, indent=1, ensure_ascii=False))
    elif options.command == "words":  # in the form of a study file
        lines = (f"{name} = {json.dumps(text, ensure_ascii=False)}" for name, text in result["words"].items())
        print("[words]", *lines, sep="\n")
    else:
        _show(result)


if __name__ == "__main__":
    main()
