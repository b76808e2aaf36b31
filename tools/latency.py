"""How fast and how large the app is here: python -m tools.latency [--json FILE]

Measures the worker inside this process, then starts the app as its users do and asks it through its
endpoint and, where Playwright and a browser are installed, through its page. Takes about a minute.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import IO, Any

import httpx
import torch

from app.jobs.handle import merge
from app.jobs.job import Done, Job
from app.models import DEVICES, ROOT, Choice, ImageModel, open_model
from app.page.prompts import EXAMPLES
from app.worker import Worker
from solver import SampleState, make_plan, noise_for_seed

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PREVIEWS, PREVIEW_STEPS, FULL_STEPS = 4, 6, 40
START_LIMIT_S = 120
# Of a first visit. Nearly all of it is Gradio's own.
MAX_KB = 1000


@dataclass(frozen=True)
class Figure:
    """One measurement; goal is the most that it should be, where there is such a bound."""

    name: str
    value: float
    unit: str
    goal: float | None = None


def find_browser() -> str | None:
    """The path of an installed Chromium, if any."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def measure_worker(model: ImageModel, repeats: int) -> Iterator[Figure]:
    """Times of previews and of a refinement, of their parts, and of the solver's share."""
    worker = Worker(model)

    def job(kind: str, seed: int, steps: int, solver: str) -> Job:
        facts = model.facts
        size = facts.width, facts.height
        return Job(kind, EXAMPLES[0], seed, steps, facts.name, *size, solver=solver)  # type: ignore[arg-type]

    def previews() -> None:
        jobs = [job("preview", seed, PREVIEW_STEPS, "consistency") for seed in range(PREVIEWS)]
        finish(worker, jobs)

    def refinement() -> None:
        finish(worker, [job("refine", 0, FULL_STEPS, "dpm++2m")])

    previews_s = timed(previews, repeats)
    yield Figure(f"{PREVIEWS} previews of {PREVIEW_STEPS} steps", previews_s, "s", 1.5)
    yield Figure(f"refinement of {FULL_STEPS} steps", timed(refinement, max(1, repeats // 2)), "s")
    worker.close()
    yield from measure_parts(model, repeats, previews_s)


def measure_parts(model: ImageModel, repeats: int, previews_s: float) -> Iterator[Figure]:
    """One step's denoiser call, one picture's decoding, and the solver's arithmetic in all the previews."""
    plan = make_plan("consistency", PREVIEW_STEPS, model.schedule, learned=model.facts.learned)
    prompts = model.encode([EXAMPLES[0]] * PREVIEWS)
    negatives = model.encode([""] * PREVIEWS, negative=True)
    guidance = torch.full((PREVIEWS,), 3.0)
    noises = [noise_for_seed(seed, model.latent_shape).to(model.device) for seed in range(PREVIEWS)]
    denoising, arithmetic = [], []
    for _ in range(repeats):
        states = [SampleState.start(plan, noise) for noise in noises]
        solver_s = 0.0
        while not states[0].done:
            began = time.perf_counter()
            inputs = torch.stack([state.model_input() for state in states])
            timesteps = torch.tensor([state.timestep for state in states])
            ready = time.perf_counter()
            outputs = model.denoise(inputs, timesteps, prompts, negatives, guidance)
            synchronize(model)
            back = time.perf_counter()
            for state, output in zip(states, outputs, strict=True):
                state.step(output)
            synchronize(model)
            denoising.append(back - ready)
            solver_s += time.perf_counter() - back + ready - began
        arithmetic.append(solver_s)
    latents = states[0].x[None]
    yield Figure(f"one step of {PREVIEWS} previews", median(denoising) * 1000, "ms")
    yield Figure("decoding one picture", timed(lambda: model.pictures(latents), repeats) * 1000, "ms")
    yield Figure("solver's share of the previews", 100 * median(arithmetic) / previews_s, "%", 3)


def measure_app(model: str, device: str) -> Iterator[Figure]:
    """The app as a program of its own: start, first preview painted, memory."""
    with running_app(model, device) as (process, url, start_s):
        yield Figure("start to first answer", start_s, "s", 20)
        yield from measure_page(url)
        ask(url, "preview", {"prompt": EXAMPLES[0]})
        ask(url, "refine", {"prompt": EXAMPLES[0]})
        peak = peak_memory(process.pid)
        if peak is not None:
            yield Figure("peak memory of the app", peak / 2**30, "GiB", 2)


@contextmanager
def running_app(
    model: str, device: str, errors: IO[str] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], str, float]]:
    """The app in a process of its own: the process, its address, and the seconds until it answered.

    errors: where its log goes, in place of this program's own.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    with tempfile.TemporaryDirectory() as data:
        command = [sys.executable, str(ROOT / "app.py"), "--port", str(port), "--data", data]
        began = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--model", model, "--device", device],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        try:
            while not answers(f"{url}readyz"):
                if process.poll() is not None or time.perf_counter() - began > START_LIMIT_S:
                    raise SystemExit("The app did not start; what it said is above.")
                time.sleep(0.05)
            yield process, url, time.perf_counter() - began
        finally:
            process.terminate()
            process.wait()


def measure_page(url: str) -> Iterator[Figure]:
    """What a first visit loads, and how long the first finished preview takes to the screen.

    Nothing without a browser.
    """
    browser_path = find_browser()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        browser_path = None
    if browser_path is None:
        print("No figure for the page: Playwright or a browser is missing.", file=sys.stderr)
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=BROWSER_OPTIONS)
        page = browser.new_page()
        page.goto(url)
        page.locator("#go").wait_for()  # the page comes in parts
        yield Figure("first visit to the page", visit_bytes(page) / 1000, "kB", MAX_KB)
        page.fill("#prompt input", EXAMPLES[0])
        times = [page.evaluate(PAINT_TIMER) for _ in range(4)]
        browser.close()
    yield Figure("click to first preview painted", median(times[1:]) / 1000, "s", 2)


def visit_bytes(page: Any) -> float:
    """Bytes over the wire of a first visit to a page that is open in Playwright, its cache aside."""
    wire = page.context.new_cdp_session(page)
    wire.send("Network.enable")
    wire.send("Network.setCacheDisabled", {"cacheDisabled": True})
    received: list[float] = []
    wire.on("Network.loadingFinished", lambda told: received.append(told["encodedDataLength"]))
    page.reload()
    page.locator(".tile.ghost").first.wait_for()
    page.wait_for_timeout(1000)
    wire.detach()
    return sum(received)


# Clicks, waits for the first tile that is new and finished, and for the frame after it is decoded.
PAINT_TIMER = """() => new Promise((resolve) => {
  const old = new Set([...document.querySelectorAll(".tile img")].map((image) => image.src));
  const began = performance.now();
  const watch = new MutationObserver(async () => {
    const tiles = [...document.querySelectorAll(".tile:not(.is-waiting) img:not([hidden])")];
    const image = tiles.find((image) => !old.has(image.src));
    if (!image) return;
    watch.disconnect();
    await image.decode();
    requestAnimationFrame(() => setTimeout(async () => {
      const seconds = performance.now() - began;
      while (document.querySelector(".grid").getAttribute("aria-busy") !== "false")
        await new Promise((again) => setTimeout(again, 50));
      resolve(seconds);
    }));
  });
  watch.observe(document.querySelector("#grid"), { subtree: true, childList: true, attributes: true });
  document.querySelector("#go").click();
})"""


def finish(worker: Worker, jobs: list[Job]) -> None:
    """Run the jobs to their end."""
    endings = [event for _, event in merge(worker.submit_all(jobs)) if isinstance(event, Done)]
    if len(endings) != len(jobs):
        raise SystemExit("A job failed; its reason is above.")


def timed(action: Callable[[], object], repeats: int) -> float:
    """The median of the seconds that `action` takes, after one run to warm up."""
    action()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return median(times)


def synchronize(model: ImageModel) -> None:
    """Wait until the device has done what it was told."""
    if model.device.type != "cpu":
        torch.accelerator.synchronize(model.device)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def ask(url: str, endpoint: str, arguments: dict[str, object]) -> None:
    from gradio_client import Client

    Client(url, verbose=False, download_files=False).predict(**arguments, api_name=f"/{endpoint}")


def peak_memory(pid: int) -> int | None:
    """The most memory that a process has held, in bytes; None where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    (kilobytes,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kilobytes) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.latency", description=__doc__)
    parser.add_argument("--model", default="landscapes", help="as for app.py (%(default)s)")
    parser.add_argument("--device", default="auto", choices=DEVICES, help="where to compute (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="the median of so many is told (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    model = open_model(Choice(arguments.model, arguments.device))
    print(f"{model.facts.name} on {model.device}, {torch.get_num_threads()} threads of {os.cpu_count()}")
    figures = []
    for measure in (
        lambda: measure_worker(model, arguments.repeats),
        lambda: measure_app(arguments.model, arguments.device),
    ):
        for figure in measure():
            goal = "" if figure.goal is None else f"  (at most {figure.goal:g})"
            print(f"{figure.name:34} {figure.value:8.2f} {figure.unit:4}{goal}", flush=True)
            figures.append(asdict(figure))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
