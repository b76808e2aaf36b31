"""Send nonsense to a running app, and see that it answers each with words: python -m tools.fuzz.

What can be asked for is read from the app itself: the routes from its OpenAPI, the endpoints for programs
from Gradio's description of them. Hypothesis makes the nonsense: values of wrong types and sizes, broken
JSON, paths that lead elsewhere, files that are none. An answer is a finding when it has status 500 or more,
shows a traceback, or does not come, and so is a traceback in the log of an app that was started for this. At
the end the app must still be well and make a picture.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import httpx

# An answer must begin within this time, and an endless one is read for so long.
PATIENCE_S = 60.0
READ_S = 1.0
READ_BYTES = 2**20
TRACES = ("Traceback (most recent call last)", 'File "/', "site-packages/")
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")
# What the page uses beside Gradio's own, which OpenAPI does not tell of.
OWN = (
    *(("POST", path) for path in ("/live", "/export", "/restore", "/start", "/login")),
    *(("GET", path) for path in ("/pictures/{shelf}/{file}", "/sketches/{name}", "/about/{file}")),
    *(("GET", path) for path in ("/healthz", "/readyz", "/metrics")),
)
# A request that is right, and cheap.
PREVIEW = {"prompt": "snowy mountains", "negative_prompt": "", "count": 1, "steps": 4, "guidance": 1.0}
PREVIEW |= {"seed": 1, "solver": "euler", "picture": None, "strength": 0.6, "width": 0, "height": 0}


@dataclass(frozen=True)
class Request:
    """One thing to send; body: as it is, or, where it is no bytes, as JSON."""

    method: str
    path: str
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    then: str = ""  # where the answer of a Gradio event is read

    @property
    def content(self) -> bytes | None:
        if self.body is None or isinstance(self.body, bytes):
            return self.body
        return json.dumps(self.body).encode()

    def __str__(self) -> str:
        shown = (self.content or b"")[:200].decode(errors="replace")
        return f"{self.method} {self.path[:200]} {shown}"


@dataclass(frozen=True)
class Finding:
    """An answer that should not be: to what, and what is wrong with it."""

    request: str
    problem: str


@dataclass
class Report:
    """What came of it all. statuses: how often each came. slowest_s: the longest wait for an answer."""

    requests: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    slowest_s: float = 0.0
    findings: list[Finding] = field(default_factory=list)


def routes_of(client: httpx.Client) -> list[tuple[str, str]]:
    """The methods and paths that the app answers at; paths have {names} in them."""
    told = client.get("/openapi.json")
    paths = told.json().get("paths", {}) if told.status_code == 200 else {}
    described = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    return sorted({*described, *OWN})


def endpoints_of(client: httpx.Client) -> dict[str, list[str]]:
    """The endpoints for programs, and the names of their parameters."""
    told = client.get("/gradio_api/info").json()["named_endpoints"]
    return {
        name: [parameter["parameter_name"] for parameter in about["parameters"]]
        for name, about in told.items()
    }


def nonsense(
    routes: Sequence[tuple[str, str]], endpoints: dict[str, list[str]], functions: dict[int, int]
) -> Any:
    """A Hypothesis strategy of requests; functions: by the numbers of Gradio's events, how many values each
    takes."""
    from hypothesis import strategies as st

    letters = st.text(max_size=30)
    texts = st.one_of(letters, st.sampled_from(TEXTS))
    numbers = st.one_of(
        st.integers(), st.floats(), st.sampled_from([0, -1, 2**32, 2**64, 10**30, 1e308, float("nan")])
    )
    leaves = st.one_of(st.none(), st.booleans(), numbers, texts)
    values = st.recursive(
        leaves,
        lambda deeper: st.lists(deeper, max_size=4) | st.dictionaries(letters, deeper, max_size=4),
        max_leaves=8,
    )
    files = st.one_of(st.binary(max_size=200), st.sampled_from(FILES))
    bodies = st.one_of(st.none(), values, st.sampled_from(BROKEN), files)
    kinds = st.sampled_from(
        [
            "application/json",
            "text/plain",
            "multipart/form-data; boundary=x",
            "multipart/form-data",
            "image/png",
            "",
        ]
    )

    @st.composite
    def paths(draw: Any, path: str) -> str:
        for name in [part.split("}")[0] for part in path.split("{")[1:]]:
            path = path.replace("{" + name + "}", quote(draw(texts), safe=draw(st.sampled_from(["", "/."]))))
        query = draw(st.dictionaries(letters | st.sampled_from(QUERIES), texts, max_size=2))
        return str(httpx.URL(path.replace("?", "%3F").replace("#", "%23"), params=query or None))

    @st.composite
    def anywhere(draw: Any) -> Request:
        headers = {"Content-Type": draw(kinds)}
        if draw(st.booleans()):
            name = draw(
                st.sampled_from(["Cookie", "Authorization", "Range", "X-Forwarded-For", "Origin", "Accept"])
            )
            headers[name] = draw(st.sampled_from(HEADERS))
        method, path = draw(st.sampled_from(routes))
        method = draw(st.sampled_from([method] * len(METHODS) + list(METHODS)))
        return Request(method, draw(paths(path)), draw(bodies), headers)

    @st.composite
    def calls(draw: Any) -> Request:
        name = draw(st.sampled_from(sorted(endpoints)))
        right = [PREVIEW.get(parameter, 1) for parameter in endpoints[name]]
        then = f"/gradio_api/call{name}"
        for place in draw(st.lists(st.integers(0, max(0, len(right) - 1)), min_size=1, max_size=3)):
            if place < len(right):
                right[place] = draw(values)
        if draw(st.booleans()):
            named = dict(zip(endpoints[name], right, strict=True))
            for left_out in draw(st.lists(st.sampled_from(sorted(named)), max_size=2)):
                named.pop(left_out, None)
            named |= draw(st.just({}) | st.just({}) | st.dictionaries(letters, values, max_size=1))
            return Request("POST", f"/gradio_api/call/v2{name}", named, then=then)
        data = draw(st.one_of(st.just(right), st.just(right), st.just(right[:1]), st.just(right * 3), values))
        body = {"data": data, "session_hash": draw(st.just("nonsense") | letters)}
        return Request("POST", then, body, then=then)

    @st.composite
    def events(draw: Any) -> Request:
        function = draw(st.sampled_from(sorted(functions)))
        most = functions[function]
        body = {
            "data": draw(st.lists(values, min_size=most, max_size=most)),
            "fn_index": function,
            "session_hash": "nonsense",
            "event_data": draw(values),
            "trigger_id": draw(st.none() | st.integers(-1, 100)),
        }
        for changed in draw(st.lists(st.sampled_from(sorted(body)), max_size=2)):
            body[changed] = draw(values)
        for left_out in draw(st.lists(st.sampled_from(sorted(body)), max_size=1)):
            body.pop(left_out, None)
        return Request("POST", draw(st.sampled_from(EVENTS)), body)

    @st.composite
    def uploads(draw: Any) -> Request:
        name = draw(
            st.sampled_from(["a.png", "../../a.png", "/etc/passwd", "a\\..\\b", "", "a" * 300, "a.pkl"])
        )
        head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        body = head + draw(files) + draw(st.sampled_from([b"\r\n--x--\r\n", b"", b"\r\n--x"]))
        return Request(
            "POST", "/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"}
        )

    return st.one_of(anywhere(), anywhere(), calls(), events(), uploads())


EVENTS = ("/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/api/predict")
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
    "-0",
    "NaN",
    "x" * 5_000,
    "lake " * 1_000,
)
QUERIES = ("session_hash", "path", "url", "__theme", "deep_link", "share", "file")
HEADERS = ("", "x", "bytes=0-", "bytes=9-1,a", "Bearer x", "null", "access-token=%00", "a=b; " * 200, "*/*")
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
    b"[]",
)


def ask(client: httpx.Client, request: Request, report: Report) -> None:
    """Send a request, and note what is wrong with its answer."""
    report.requests += 1
    began = time.perf_counter()
    try:
        text = _answer(client, request, report, began)
        if request.then and (event := _event(text)):
            text += _answer(client, Request("GET", f"{request.then}/{event}"), report, time.perf_counter())
    except httpx.TimeoutException:
        report.findings.append(Finding(str(request), f"no answer within {PATIENCE_S:.0f} s"))
        return
    except (httpx.InvalidURL, httpx.LocalProtocolError, UnicodeEncodeError):
        return  # nobody could send this
    except httpx.HTTPError as error:
        report.findings.append(Finding(str(request), f"the connection broke: {error!r}"))
        return
    for trace in TRACES:
        if trace in text:
            report.findings.append(Finding(str(request), f"shows a traceback: {text[:300]}"))
            return


def _answer(client: httpx.Client, request: Request, report: Report, began: float) -> str:
    """The beginning of an answer's text."""
    kind = {} if isinstance(request.body, bytes) else {"Content-Type": "application/json"}
    headers = {name: value for name, value in (kind | request.headers).items() if value}
    sent = client.stream(request.method, request.path, content=request.content, headers=headers)
    with sent as answer:
        report.slowest_s = max(report.slowest_s, time.perf_counter() - began)
        report.statuses[answer.status_code] += 1
        body = b""
        limit = time.perf_counter() + (PATIENCE_S if "/call/" in request.path else READ_S)
        for part in answer.iter_bytes():
            body += part
            if len(body) > READ_BYTES or time.perf_counter() > limit:
                break
        text = body.decode(errors="replace")
        if answer.status_code >= 500 and answer.status_code != 503:
            report.findings.append(Finding(str(request), f"status {answer.status_code}: {text[:300]}"))
        return text


def _event(text: str) -> str:
    try:
        return str(json.loads(text)["event_id"])
    except (ValueError, KeyError, TypeError):
        return ""


def fuzz(url: str, requests: int, seed: int, told: Callable[[Report], None] = lambda report: None) -> Report:
    """Send so many requests to the app at `url`; told: called after each."""
    import hypothesis

    report = Report()
    # A connection each, so that what breaks one is known.
    alone = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=url, timeout=httpx.Timeout(PATIENCE_S), limits=alone) as client:
        functions = {each["id"]: len(each["inputs"]) for each in client.get("/config").json()["dependencies"]}
        strategy = nonsense(routes_of(client), endpoints_of(client), functions)

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=requests,
            deadline=None,
            database=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(strategy)
        def send(request: Request) -> None:
            ask(client, request, report)
            told(report)

        send()
        _check_alive(client, report)
    return report


def _check_alive(client: httpx.Client, report: Report) -> None:
    """After all that, the app must be well, and make a picture."""
    if client.get("/healthz").status_code != 200:
        report.findings.append(Finding("GET /healthz", "the app is not well any more"))
    right = Request("POST", "/gradio_api/call/preview", {"data": list(PREVIEW.values())})
    event = _event(_answer(client, right, report, time.perf_counter()))
    text = _answer(client, Request("GET", f"{right.path}/{event}"), report, time.perf_counter())
    if "event: complete" not in text:
        report.findings.append(Finding(str(right), f"a request that is right is not answered: {text[:300]}"))


def logged(log: str) -> list[Finding]:
    """A finding for each error that the app did not expect, by its log."""
    _, *traces = log.split(TRACES[0])
    return [Finding("see the log", f"a traceback in the log, ending: {_ending(trace)}") for trace in traces]


def _ending(trace: str) -> str:
    """The first line after a traceback's indented ones, which names the error."""
    return next((line for line in trace.splitlines()[1:] if line and not line.startswith(" ")), "")[:300]


@contextmanager
def _app(url: str | None, model: str, log: IO[str]) -> Iterator[str]:
    """The address of an app: the one that is given, or one that is started for this, and logs into `log`."""
    if url:
        yield url.rstrip("/")
        return
    from tools.latency import running_app

    with running_app(model, "cpu", log) as (_, own, _):
        began = time.monotonic()
        while httpx.get(f"{own}readyz").status_code != 200:
            if time.monotonic() - began > 300:
                raise SystemExit("The app did not become ready; what it said is above.")
            time.sleep(0.2)
        yield own.rstrip("/")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000, metavar="N", help="how many (%(default)s)")
    parser.add_argument("--url", metavar="ADDRESS", help="of a running app; without it, one is started")
    parser.add_argument("--model", default="landscapes", help="as for app.py, for one that is started")
    parser.add_argument("--seed", type=int, default=0, help="the same nonsense again (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there, too")
    arguments = parser.parse_args()
    try:
        import hypothesis  # noqa: F401
    except ImportError:
        parser.error("this needs Hypothesis: pip install -r requirements-dev.txt")

    def told(report: Report) -> None:
        if sys.stderr.isatty() or report.requests % 200 == 0:
            end = "\r" if sys.stderr.isatty() else "\n"
            print(
                f"{report.requests} of {arguments.requests}, {len(report.findings)} findings",
                end=end,
                file=sys.stderr,
            )

    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        try:
            with _app(arguments.url, arguments.model, log) as url:
                report = fuzz(url, arguments.requests, arguments.seed, told)
        except httpx.HTTPError as error:
            print(f"The app can't be reached ({error}). Is it running at {arguments.url}?", file=sys.stderr)
            return 2
        finally:
            log.seek(0)
            said = log.read()
            print(said, end="", file=sys.stderr)
    report.findings += logged(said)
    for finding in report.findings:
        print(f"{finding.request}\n    {finding.problem}")
    counts = ", ".join(f"{count} × {status}" for status, count in sorted(report.statuses.items()))
    print(f"{report.requests} requests ({counts}); slowest {report.slowest_s:.1f} s")
    print(f"{len(report.findings)} findings")
    if arguments.json:
        findings = [asdict(finding) for finding in report.findings]
        text = json.dumps(vars(report) | {"findings": findings}, indent=1)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
