"""The log: one line for each entry, as text or as JSON, never with a prompt."""

import json
import logging
import re
import sys
import time
from typing import Any, TextIO

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# Attributes that every record has; others were given as `extra`.
_OWN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def start_logging(style: str, level: str, stream: TextIO | None = None) -> logging.Handler:
    """Write entries from `level` on to `stream` (standard error), as "text" or "json"; return the handler."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if style == "json" else TextLines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("app").setLevel(level.upper())
    return handler


def extras(record: logging.LogRecord) -> dict[str, Any]:
    """Return what was given to the entry as `extra` and is not empty."""
    return {key: value for key, value in vars(record).items() if key not in _OWN and value not in (None, "")}


class TextLines(logging.Formatter):
    """For people: time, level, message, and `key=value` for each extra."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        pairs = [f"{key}={value}" for key, value in extras(record).items()]
        return " ".join([_one_line(super().formatMessage(record)), *map(_one_line, pairs)])


class JsonLines(logging.Formatter):
    """For programs: an object on each line with `time` (UTC, ISO 8601), `level`, `logger`, `message`, the
    extras, and `error` with a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{when}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **extras(record),
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def _one_line(text: str) -> str:
    """Escape control characters: what visitors send must not look like another entry or steer a terminal."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
