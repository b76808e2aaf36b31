"""As much of a ZeroGPU Space as the package `spaces` asks for, where there is neither a Space nor a GPU.

Real are the package's decorator, its fork, its queues, its pickling, its errors and its HTTP client. Standing
in are the scheduler that hands out GPUs, which the package asks over HTTP, and what touches CUDA itself.
"""

import base64
import json
import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import torch


@dataclass(frozen=True)
class Refusal:
    """What the scheduler answers instead of a GPU."""

    status: int
    content_type: str
    body: str


OUT_OF_QUOTA = Refusal(429, "application/json", json.dumps({"left": 5, "wait": 720}))
TOO_LONG = Refusal(429, "application/json", json.dumps({"left": 5, "wait": -1}))
QUEUE_TIMEOUT = Refusal(200, "text/event-stream", "event: failed\n\n")
NO_GPU = Refusal(503, "text/plain", "")
BROKEN = Refusal(500, "text/plain", "")


@dataclass
class Scheduler:
    """Hands out GPUs: what it was asked, and what it answers.

    started: whether the Space has said that it is up. schedules: the parameters of each request for a GPU.
    pids: of the processes that were let onto one. releases: for each GPU that came back, whether it failed.
    refusal: what it answers from now on, if not a GPU.
    """

    url: str = ""
    started: bool = False
    schedules: list[dict[str, str]] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    releases: list[bool] = field(default_factory=list)
    refusal: Refusal | None = None
    _busy: dict[str, int] = field(default_factory=dict)
    _idle: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def lent(self) -> int:
        """How many GPUs have not come back."""
        return len(self._busy)

    def kill(self) -> None:
        """End the processes of this one that have had a GPU, as ZeroGPU ends those that take too long."""
        for process in multiprocessing.active_children():
            if process.pid in self.pids:
                process.kill()

    def answer(self, path: str, asked: dict[str, str]) -> Refusal:
        """The answer to one request of the package."""
        with self._lock:
            match path:
                case "/startup-report":
                    self.started = True
                case "/schedule":
                    self.schedules.append(asked)
                    return self.refusal or self._hand_out()
                case "/allow":
                    self.pids.append(int(asked["pid"]))
                case "/release":
                    failed = asked["fail"] == "true"
                    self.releases.append(failed)
                    index = self._busy.pop(asked["allowToken"])
                    if not failed:
                        self._idle.add(index)
        return Refusal(200, "text/plain", "")

    def _hand_out(self) -> Refusal:
        index = next(i for i in range(100) if i not in self._busy.values())
        token = f"token-{len(self.schedules)}"
        self._busy[token] = index
        gpu = {
            "idle": index in self._idle,
            "nvidiaIndex": index,
            "nvidiaUUID": f"GPU-{index}",
            "allowToken": token,
        }
        self._idle.discard(index)
        return Refusal(200, "application/json", json.dumps(gpu))


@contextmanager
def scheduler() -> Iterator[Scheduler]:
    """A scheduler that answers at its `url`; processes that still have a GPU at the end are ended."""
    handing_out = Scheduler()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            url = urlsplit(self.path)
            answer = handing_out.answer(url.path, dict(parse_qsl(url.query)))
            self.send_response(answer.status)
            self.send_header("content-type", answer.content_type)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body.encode())

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handing_out.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield handing_out
    finally:
        handing_out.kill()
        server.shutdown()
        server.server_close()


def become_space(patch: pytest.MonkeyPatch, url: str) -> None:
    """Have `spaces.GPU` do what it does on a ZeroGPU Space whose scheduler is at `url`.

    CUDA is neither emulated in this process nor used in the forked ones.
    """
    with pytest.MonkeyPatch.context() as pretending:
        pretend_cuda_build(pretending)
        import spaces.config
        import spaces.zero.torch
        import spaces.zero.wrappers  # it looks for CUDA when it is imported
    patch.setattr(spaces.config.Config, "zero_gpu", True)
    patch.setattr(spaces.config.Config, "zero_device_api_url", url)
    for name in ("enter_mode", "unpatch", "init", "move"):
        patch.setattr(spaces.zero.torch, name, lambda *args, **kwargs: None)


def become_space_for_good() -> None:
    """The same in a process started with SPACES_ZERO_GPU, where the package emulates CUDA as it does there.

    What a program puts on "cuda" is on the CPU in the forked process.
    """
    pretend_cuda_build(pytest.MonkeyPatch())
    import spaces.zero.torch
    from spaces.zero.torch.patching import cuda_aliases

    def move(callback: object = None) -> None:
        for emulated, original in cuda_aliases.items():
            assert original is not None
            emulated.data = original

    for name, stand_in in {"pack": lambda: 0, "init": lambda uuid: None, "move": move}.items():
        setattr(spaces.zero.torch, name, stand_in)


def pretend_cuda_build(patch: pytest.MonkeyPatch) -> None:
    """Make a torch for CPUs look like one for GPUs, as far as the package looks when it is imported."""
    if torch.version.cuda is None:
        patch.setattr(torch.version, "cuda", "13.0")
        patch.setattr(torch._C, "_cuda_init", lambda: None, raising=False)
        patch.setattr(torch.cuda, "_is_in_bad_fork", bool)  # False, and can be pickled


def visitor(name: str) -> Any:
    """A Gradio request of a visitor, with the token by which the scheduler knows them."""
    return SimpleNamespace(headers=_Headers({"x-ip-token": token_of(name)}))


def token_of(name: str) -> str:
    """What a Space sends along with whatever this visitor does."""
    payload = base64.urlsafe_b64encode(json.dumps({"user": name}).encode()).decode().rstrip("=")
    return f"header.{payload}.signature"


class _Headers(dict):
    """With the attributes of an object, for which the package looks."""
