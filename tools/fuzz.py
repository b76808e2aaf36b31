"""Send malformed requests to a running app, and check that each gets a proper answer: python -m tools.fuzz.

Schemathesis generates the requests from the app's two OpenAPI documents, Gradio's list of events and the
routes in OWN. A problem is an answer with status 500 or more, with a traceback or with broken JSON, an answer
that is missing, and a traceback in the log of an app that was started for this. At the end the app must still
make a picture.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import hypothesis
import requests
import schemathesis
from hypothesis import strategies as st
from schemathesis.core.result import Ok
from tqdm import tqdm

from app.page.handlers import ACTIONS

# An answer must begin within this time; an endless one is read for READ_S seconds.
PATIENCE_S = 60.0
READ_S = 0.3
READ_BYTES = 2**20
TRACES = ("Traceback (most recent call last)", 'File "/', "site-packages/")
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")
# Routes of the app that its OpenAPI documents leave out.
OWN = {
    "post": ("/live", "/export", "/restore", "/start"),
    "get": ("/pictures/{shelf}/{file}", "/sketches/{name}", "/about/{file}", "/healthz", "/readyz"),
}
JOIN, UPLOAD, CALL = "/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/call/"
# A valid and cheap request for previews.
PREVIEW = {"prompt": "snowy mountains", "negative_prompt": "", "count": 1, "steps": 4, "guidance": 1.0}
PREVIEW |= {"seed": 1, "solver": "euler", "picture": None, "strength": 0.6, "width": 0, "height": 0}
# The values that the page's scripts send: the secrets of a tab, and an action with its values.
TAB: dict[str, Any] = {
    "type": "object",
    "properties": {
        "browser": {"enum": ["0" * 64]},
        "tab": {"enum": ["a" * 16]},
        "do": {"enum": sorted(ACTIONS)},
        "grid": {},
        "seed": {"type": ["integer", "null"]},
    },
    "required": ["browser", "tab"],
}

TEXTS = (
    "../../../../etc/passwd",
    "/etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "file:///etc/passwd",
    "http://127.0.0.1:1/",
    "\\\\host\\share",
    "app.py",
    "a\0b",
    "\ud7ff\U0010ffff",
    "'; DROP TABLE x; --",
    "<script>alert(1)</script>",
    "{{7*7}}${7*7}%s%n",
    "NaN",
    "x" * 5_000,
    "lake " * 1_000,
)
HEADERS = ("Cookie", "Authorization", "Range", "X-Forwarded-For", "Origin", "Accept")
HEADER_VALUES = ("", "x", "bytes=0-", "bytes=9-1,a", "Bearer x", "null", "access-token=%00", "a=b; " * 200)
FILE_NAMES = ("a.png", "../../a.png", "/etc/passwd", "a\\..\\b", "", "a" * 300, "a.pkl")
FILES = (
    b"",
    b"\x89PNG\r\n\x1a\n" + b"\xff" * 64,
    b"\xff\xd8\xff\xe0" + b"\0" * 64,
    b"RIFF\xff\xff\xff\xffWEBPVP8 ",
    b"\x80\x04\x95cos\nsystem\n",
    b"PK\x03\x04" + b"\0" * 60,
    b"<svg onload=alert(1)>",
)
BROKEN = (
    b"{",
    b'{"data": [',
    b"\xff\xfe",
    b"[" * 20_000,
    b'{"a":' * 2_000 + b"1" + b"}" * 2_000,
    b'{"data": [NaN, Infinity, 1e999]}',
    b'{"data": [1], "data": [2]}',
    b'"' + b"\\ud800" * 10 + b'"',
    b"1" * 6_000,
    b"null",
    *FILES,
)


@dataclass(frozen=True)
class Finding:
    """A request, and the problem of its answer."""

    request: str
    problem: str


@dataclass
class Report:
    """The result of a run.

    Attributes:
        statuses: number of answers by status.
        slowest_s: longest wait for an answer.
    """

    requests: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    slowest_s: float = 0.0
    findings: list[Finding] = field(default_factory=list)


def describe_app(url: str) -> dict[str, Any]:
    """Return one OpenAPI document of all endpoints of the app at `url`."""
    document = requests.get(f"{url}/openapi.json").json()
    endpoints = requests.get(f"{url}/gradio_api/openapi.json").text
    # Gradio gives files the type "filepath", which JSON Schema does not know.
    endpoints = json.loads(endpoints.replace('"filepath"', '"string"'))["paths"]
    events = requests.get(f"{url}/config").json()["dependencies"]
    names = [path.removeprefix(f"{CALL}v2/") for path in endpoints if path.startswith(f"{CALL}v2/")]
    paths = document["paths"]
    paths |= {path: endpoints[path] for path in (UPLOAD, *(f"{CALL}v2/{name}" for name in names))}
    for name in names:
        body = paths[f"{CALL}v2/{name}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        body |= {"additionalProperties": False, "required": ["prompt"]}
        for argument, schema in body["properties"].items():
            if argument in PREVIEW:  # most arguments right, so that the others matter
                body["properties"][argument] = {"anyOf": [{"enum": [PREVIEW[argument]]}, schema]}
    paths[JOIN]["post"]["requestBody"]["content"]["application/json"]["schema"] = {
        "anyOf": [_event_schema(each["id"], len(each["inputs"])) for each in events]
    }
    bodies = {"application/json": {"schema": TAB}, "application/octet-stream": {"schema": {}}}
    for method, own in OWN.items():
        for path in own:
            paths[path] = {method: {"requestBody": {"content": bodies}} if method == "post" else {}}
    for path, operations in paths.items():
        for operation in operations.values():
            operation["responses"] = {}
            known = {each["name"]: each for each in operation.get("parameters", ())}
            for name in (part.partition("}")[0] for part in path.split("{")[1:]):
                schema = {"enum": names} if name == "api_name" else {"type": "string"}
                known[name] = {"name": name, "in": "path", "required": True, "schema": schema}
            for name in HEADERS:
                known[name] = {"name": name, "in": "header", "schema": {"enum": list(HEADER_VALUES)}}
            operation["parameters"] = list(known.values())
    return _with_texts(document)


def _event_schema(number: int, inputs: int) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "fn_index": {"enum": [number]},
            "data": {"type": "array", "minItems": inputs, "maxItems": inputs},
            "session_hash": {"type": "string", "pattern": "^[a-z0-9]{1,12}$"},
            "event_data": {"anyOf": [TAB | {"required": [*TAB["properties"]]}, {}]},
            "trigger_id": {"type": ["integer", "null"]},
        },
        "required": ["fn_index", "data", "session_hash"],
        "additionalProperties": False,
    }


def _with_texts(schema: Any) -> Any:
    """Add TEXTS to the values of every free text in a schema."""
    if isinstance(schema, list):
        return [_with_texts(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "string" and not {"format", "enum", "pattern"} & {*schema}:
        return {"anyOf": [{"type": "string"}, {"enum": list(TEXTS)}]}
    return {key: _with_texts(value) for key, value in schema.items()}


def nonsense(document: Mapping[str, Any], url: str) -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy of requests, as keywords for `requests.request`."""
    schemathesis.openapi.format("binary", st.binary(max_size=200) | st.sampled_from(FILES))
    schema = schemathesis.openapi.from_dict(dict(document))
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    important = [each for each in operations if each.path in (JOIN, UPLOAD, *OWN["post"], *OWN["get"])]
    endpoints = [each for each in operations if f"{CALL}v2/" in each.path and each.method == "post"]
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    cases = [
        [each.as_strategy(generation_mode=mode) for each in group for mode in modes]
        for group in (operations, endpoints, important)
    ]

    @st.composite
    def sent(draw: Any) -> dict[str, Any]:
        group = draw(st.sampled_from(cases))  # `one_of` would choose among all operations alike
        request = draw(draw(st.sampled_from(group))).as_transport_kwargs(base_url=url)
        if request.get("files"):
            request["files"] = [
                (name, (draw(st.sampled_from(FILE_NAMES)), content[-1])) for name, content in request["files"]
            ]
        match draw(st.integers(0, 9)):
            case 0:
                request["method"] = draw(st.sampled_from(METHODS))
            case 1 if request["method"] == "POST":
                request |= {"json": None, "files": None, "data": draw(st.sampled_from(BROKEN))}
        return request

    return sent()


def ask(session: requests.Session, request: Mapping[str, Any], report: Report) -> str:
    """Send a request, follow its event, and report problems; return the answer's text."""
    report.requests += 1
    shown = " ".join(str(request.get(key))[:200] for key in ("method", "url", "params", "json", "data"))

    def note(problem: str) -> None:
        report.findings.append(Finding(shown, problem))

    began = time.perf_counter()
    try:
        with session.request(**request, stream=True, timeout=PATIENCE_S) as answer:
            report.slowest_s = max(report.slowest_s, time.perf_counter() - began)
            report.statuses[answer.status_code] += 1
            text, whole = _read(answer, PATIENCE_S if CALL in request["url"] else READ_S)
    except requests.Timeout:
        note(f"no answer within {PATIENCE_S:.0f} s")
        return ""
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
        note(f"the connection broke: {error!r}")
        return ""
    except (ValueError, requests.RequestException):
        return ""  # no client could send this
    if answer.status_code >= 500 and answer.status_code != 503:
        note(f"status {answer.status_code}: {text[:300]}")
    if any(trace in text for trace in TRACES):
        note(f"shows a traceback: {text[:300]}")
    event = None
    if whole and answer.headers.get("content-type", "").startswith("application/json") and text:
        try:
            reply = json.loads(text)
            event = reply.get("event_id") if isinstance(reply, dict) else None
        except ValueError:
            note(f"broken JSON: {text[:300]}")
    if event and CALL in request["url"]:
        address = request["url"].partition("?")[0].rstrip("/")
        text += ask(session, {"method": "GET", "url": f"{address}/{event}"}, report)
    return text


def _read(answer: requests.Response, seconds: float) -> tuple[str, bool]:
    """Return the beginning of an answer, and whether it is complete."""
    body, end = b"", time.perf_counter() + seconds
    for part in answer.iter_content(None):
        body += part
        if len(body) > READ_BYTES or time.perf_counter() > end:
            return body.decode(errors="replace"), False
    return body.decode(errors="replace"), True


def fuzz(url: str, count: int, seed: int, progress: Callable[[Report], Any] = lambda report: None) -> Report:
    """Send `count` requests to the app at `url`, and call `progress` after each."""
    report = Report()
    session = requests.Session()
    session.headers["Connection"] = "close"  # a connection each, so that it is known which request broke it

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(nonsense(describe_app(url), url))
    def send(request: dict[str, Any]) -> None:
        session.cookies.clear()
        ask(session, request, report)
        progress(report)

    send()
    if requests.get(f"{url}/healthz", timeout=PATIENCE_S).status_code != 200:
        report.findings.append(Finding("GET /healthz", "the app is not healthy any more"))
    right = {"method": "POST", "url": f"{url}{CALL}preview", "json": {"data": list(PREVIEW.values())}}
    text = ask(session, right, report)
    if "event: complete" not in text:
        report.findings.append(Finding(str(right), f"a valid request fails: {text[:300]}"))
    return report


def logged(log: str) -> list[Finding]:
    """Return a finding for each traceback in the app's log."""
    _, *traces = log.split(TRACES[0])
    return [Finding("see the log", f"a traceback in the log, ending: {_ending(trace)}") for trace in traces]


def _ending(trace: str) -> str:
    # The first line after the indented ones names the error.
    return next((line for line in trace.splitlines()[1:] if line and not line.startswith(" ")), "")[:300]


@contextmanager
def _app(url: str | None, model: str, log: IO[str]) -> Iterator[str]:
    """Yield the address of the app at `url` or, without it, of a new one that logs into `log`."""
    if url:
        yield url.rstrip("/")
        return
    from tools.latency import running_app

    with running_app(model, "cpu", log) as (_, own, _):
        yield own.rstrip("/")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--requests", type=int, default=2000, metavar="N", help="number of requests (%(default)s)"
    )
    parser.add_argument("--url", metavar="ADDRESS", help="of a running app; default: start one")
    parser.add_argument("--model", default="landscapes", help="as for app.py, without --url (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the requests (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report to this file too")
    arguments = parser.parse_args()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log, tqdm(total=arguments.requests) as bar:

        def progress(report: Report) -> None:
            bar.set_postfix(findings=len(report.findings), refresh=False)
            bar.update()

        try:
            with _app(arguments.url, arguments.model, log) as url:
                report = fuzz(url, arguments.requests, arguments.seed, progress)
        except requests.RequestException as error:
            print(f"The app can't be reached ({error}). Is it running at {arguments.url}?", file=sys.stderr)
            return 2
        finally:
            log.seek(0)
            entries = log.read()
            print(entries, end="", file=sys.stderr)
    report.findings += logged(entries)
    for finding in report.findings:
        print(f"{finding.request}\n    {finding.problem}")
    counts = ", ".join(f"{count} × {status}" for status, count in sorted(report.statuses.items()))
    print(f"{report.requests} requests ({counts}); slowest {report.slowest_s:.1f} s")
    print(f"{len(report.findings)} findings")
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
