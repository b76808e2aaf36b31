"""User studies, from the file that describes one to the report: python -m app.study COMMAND

A log is an SQLite file, a postgresql:// URL, a .jsonl file, or parquet. Everything here is done at a command
line; nothing of it can be reached through the page.
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
from app.study.plan.labels import LABELS
from app.study.plan.order import trials
from app.study.plan.study_file import EXAMPLE, StudyError, read_study


class CommandError(ValueError):
    """What was asked for can't be done; the message says why."""


def check(options: argparse.Namespace) -> dict[str, Any]:
    """Say whether a study file is in order, and what a participant would do."""
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
    """Show the words of a study's own buttons and messages, to be changed in the [words] of a study file."""
    return {"words": dict(LABELS[options.language])}


def export(options: argparse.Namespace) -> dict[str, Any]:
    """Write a log as JSON lines (.jsonl) or parquet (.parquet)."""
    from app.study.log.reading import read_log, write_jsonl, write_parquet

    writers = {".jsonl": write_jsonl, ".parquet": write_parquet}
    if options.out.suffix not in writers:
        raise CommandError(f"--out must end in .jsonl or .parquet, not {options.out.suffix or 'nothing'}.")
    log = read_log(options.log)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    return {"written": writers[options.out.suffix](log.events, options.out), **asdict(log.faults)}


def import_(options: argparse.Namespace) -> dict[str, Any]:
    """Take the events of one log into another; those that are there already are left as they are."""
    from app.study.log.reading import read_log

    log = read_log(options.source)
    return {"read": append_all(_opened(options), log.events)}


def withdraw(options: argparse.Namespace) -> dict[str, Any]:
    """Delete all that there is of the participant with a withdrawal code."""
    from app.study.log.pictures import delete_pictures
    from app.study.log.withdrawal import participant_of

    participant = participant_of(options.code)
    count = _opened(options, must_exist=True).withdraw(participant)
    if not count:
        raise CommandError("Nobody in this log has that code. It has 20 letters and digits.")
    return {"events": count, "pictures": delete_pictures(options.log, participant)}


def prune(options: argparse.Namespace) -> dict[str, Any]:
    """Delete participants whose last event is older than a study's retention_days, or than --days."""
    from app.study.log.pictures import delete_orphans

    days = options.days if options.days is not None else read_study(options.study).retention_days
    store = _opened(options, must_exist=True)
    return {"events": store.prune(days), "pictures": delete_orphans(options.log, store)}


def status(options: argparse.Namespace) -> dict[str, Any]:
    """Say what a log holds."""
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
    """Write the report of a log: a page, and tables."""
    from app.study.log.reading import read_log
    from app.study.report.document import write_report
    from app.study.report.findings import ReportError

    if not 0 < options.level < 1:
        raise CommandError(f"--level lies between 0 and 1, such as 0.95; it is {options.level:g}.")
    study = read_study(options.study)
    try:
        found = write_report(study, read_log(options.log), options.out, options.level)
    except ReportError as error:
        raise CommandError(str(error)) from error
    return {
        "report": str(options.out / "report.html"),
        "participants": found.analysed,
        "simulated": found.simulated,
        "ratios": {f"{each.of} / {each.over}": asdict(each.paired) for each in found.ratios},
        "warnings": found.warnings,
    }


def power(options: argparse.Namespace) -> dict[str, Any]:
    """Say how many participants find a ratio of times, by the paired t test."""
    from app.study.report.power import needed

    try:
        return asdict(needed(options.ratio, options.spread, options.power, options.alpha))
    except ValueError as error:
        raise CommandError(str(error)) from error


def simulate(options: argparse.Namespace) -> dict[str, Any]:
    """Simulate studies with a known effect, and say how often the primary interval holds it."""
    from app.study.report.simulation import Truth, coverage

    study, rows = read_study(options.study), []
    for count in options.participants:
        if count < 2 or options.studies < 1:
            raise CommandError("--participants takes numbers from 2, and --studies from 1.")
        steps = coverage(study, count, options.studies, Truth(ratio=options.ratio), options.seed)
        for row in tqdm(steps, total=options.studies, desc=f"{count} participants", unit="study"):
            last = row
        rows.append(asdict(last))
    return {"simulated studies": rows}


def participants(options: argparse.Namespace) -> dict[str, Any]:
    """Let programs take part through the running app, and report how long they took. No person takes part."""
    from app.study.report.simulated_participants import MAX_UNSAID, run

    if options.prompts < 1 or options.participants < 1 or options.look < 0:
        raise CommandError("--participants and --prompts take numbers from 1, and --look from 0.")
    if not 0 <= options.unsaid <= MAX_UNSAID:
        raise CommandError(
            f"--unsaid takes 0 to {MAX_UNSAID}; a scene has no more that a prompt leaves open."
        )
    try:
        return run(options)
    except ValueError as error:
        raise CommandError(str(error)) from error


def _opened(options: argparse.Namespace, must_exist: bool = False) -> Any:
    if must_exist and "://" not in options.log and not Path(options.log).exists():
        raise StoreError(f"there is no log {options.log}.")
    store = open_store(options.log)
    dataset = getattr(options, "dataset", None)
    if not dataset:
        return store
    from app.study.log.hub import HubStore

    return HubStore(store, dataset)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m app.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], Any]) -> argparse.ArgumentParser:
        words = (run.__doc__ or "").strip()
        made = commands.add_parser(name, help=words.splitlines()[0], description=words)
        made.set_defaults(run=run)
        made.add_argument("--json", action="store_true", help="answer with JSON")
        return made

    def log(made: argparse.ArgumentParser) -> None:
        made.add_argument("log", metavar="LOG", help="SQLite file, postgresql:// URL, .jsonl or parquet")

    def study(made: argparse.ArgumentParser) -> None:
        made.add_argument(
            "--study", type=Path, default=EXAMPLE, metavar="FILE", help="the study's file (the example)"
        )

    def dataset(made: argparse.ArgumentParser) -> None:
        made.add_argument("--dataset", metavar="OWNER/NAME", help="and from this dataset on the Hub, too")

    made = command("check", check)
    made.add_argument("study", type=Path, nargs="?", default=EXAMPLE, help="the study's file (the example)")
    made.add_argument("--place", type=int, default=0, metavar="N", help="whose trials to show (%(default)s)")
    made = command("words", words)
    made.add_argument("--language", choices=tuple(LABELS), default="en", help="(%(default)s)")
    log(command("status", status))
    made = command("export", export)
    log(made)
    made.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .jsonl or .parquet file")
    made = command("import", import_)
    log(made)
    made.add_argument("source", metavar="SOURCE", help="the log whose events are taken in")
    made = command("withdraw", withdraw)
    log(made)
    made.add_argument("code", metavar="CODE", help="as told on the study's last page")
    dataset(made)
    made = command("prune", prune)
    log(made)
    study(made)
    made.add_argument("--days", type=float, metavar="N", help="instead of the file's retention_days")
    dataset(made)
    made = command("report", report)
    log(made)
    study(made)
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="the report's folder")
    made.add_argument("--level", type=float, default=0.95, metavar="P", help="of intervals (%(default)s)")
    made = command("power", power)
    made.add_argument("--ratio", type=float, default=1.85, help="of times, to be found (%(default)s)")
    made.add_argument(
        "--spread", type=float, default=0.6,
        help="standard deviation between participants of the log of their ratio (%(default)s)",
    )  # fmt: skip
    made.add_argument("--power", type=float, default=0.8, help="chance of finding it (%(default)s)")
    made.add_argument("--alpha", type=float, default=0.05, help="two-sided (%(default)s)")
    made = command("simulate", simulate)
    study(made)
    made.add_argument("--studies", type=int, default=500, metavar="N", help="(%(default)s)")
    made.add_argument("--participants", type=int, nargs="+", default=[12, 24], metavar="N", help="(12 24)")
    made.add_argument("--ratio", type=float, default=0.54, help="the true one (%(default)s)")
    made.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    made = command("participants", participants)
    made.add_argument("--url", default="http://127.0.0.1:7860", help="the running app (%(default)s)")
    made.add_argument("--participants", type=int, default=10, metavar="N", help="(%(default)s)")
    made.add_argument("--prompts", type=int, default=10, metavar="N", help="for each (%(default)s)")
    made.add_argument("--look", type=float, default=0.4, metavar="S", help="per picture (%(default)s)")
    made.add_argument(
        "--unsaid", type=int, default=0, metavar="N", help="things wanted that no prompt says (%(default)s)"
    )
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="for log and report")
    return parser


def _show(told: dict[str, Any], indent: str = "") -> None:
    for name, value in told.items():
        if isinstance(value, dict) and value and all(isinstance(each, dict) for each in value.values()):
            print(f"{indent}{name}:")
            for part, each in value.items():
                print(f"{indent}  {part}: {_row(each)}")
            continue
        rows = value if isinstance(value, list) else [value] if isinstance(value, dict) else None
        if rows is None:
            print(f"{indent}{name}: {_short(value)}")
            continue
        rows = [each for each in rows if each]
        print(f"{indent}{name}:" if rows else f"{indent}{name}: none")
        for row in rows:
            print(f"{indent}  {_row(row) if isinstance(row, dict) else row}")


def _row(values: dict[str, Any]) -> str:
    return "  ".join(f"{name}={_short(each)}" for name, each in values.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    try:
        told = options.run(options)
    except (StudyError, StoreError, CommandError) as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"{error.filename} can't be used ({error.strerror})." if error.filename else str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    if options.json:
        print(json.dumps(told, indent=1, ensure_ascii=False))
    elif options.command == "words":  # as a study file has them
        lines = (f"{name} = {json.dumps(text, ensure_ascii=False)}" for name, text in told["words"].items())
        print("[words]", *lines, sep="\n")
    else:
        _show(told)


if __name__ == "__main__":
    main()
