"""Entries are one line each, and nobody can forge one."""

import io
import json
import logging

from app.server import logs


def test_nobody_can_forge_an_entry(log: io.StringIO) -> None:
    line = 'x"}\n{"level": "error", "message": "forged"}'
    logging.getLogger("app").info("%s", line, extra={"route": line})
    (entry,) = map(json.loads, log.getvalue().splitlines())
    assert entry["message"] == entry["route"] == line
    record = logging.makeLogRecord({"msg": line, "route": line, "levelname": "INFO"})
    assert len(logs.TextLines().format(record).splitlines()) == 1


def test_control_characters_do_not_reach_a_terminal() -> None:
    record = logging.makeLogRecord({"msg": "a\x1b[2Jb\x9bc\u2028d", "levelname": "INFO"})
    assert logs.TextLines().format(record).endswith(r"INFO a\x1b[2Jb\x9bc\u2028d")


def test_errors_keep_their_traceback_in_the_log_in_one_line(log: io.StringIO) -> None:
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("app").exception("it failed")
    (entry,) = map(json.loads, log.getvalue().splitlines())
    assert "ValueError: why" in entry["error"]
