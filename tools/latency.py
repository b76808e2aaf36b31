"""Measure the app's times, traffic and memory on this machine: python -m tools.latency [--json FILE]

Measures the worker inside this process, then starts the app as its users do and uses its endpoints and, where
Playwright and a browser are installed, its page. Takes about a minute.
"""

import argparse
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from statistics import median
from typing import IO, Any

import httpx
import torch
from tqdm import tqdm

from app.jobs.handle import merge
from app.jobs.job import Done, Job
from app.models import DEVICES, ROOT, Choice, ImageModel, ModelError, open_model
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
# Goal for a first visit; nearly all of it is Gradio's own.
MAX_KB = 1000
FIGURES = 9


@dataclass(frozen=True)
class Figure:
    """One measurement.

    Attributes:
        key: its name in the file of results, which ends with the unit of `value`.
        scale: factor from `value` to `unit`, in which it is shown.
        goal: upper limit in `unit`, if there is one.
    """

    key: str
    name: str
    value: float
    unit: str = "s"
    goal: float | None = None
    scale: float = 1.0

    def __str__(self) -> str:
        goal = "" if self.goal is None else f"  (at most {self.goal:g})"
        return f"{self.name:34} {self.value * self.scale:8.2f} {self.unit:4}{goal}"


def find_browser() -> str | None:
    """Return the path of an installed Chromium, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def measure_worker(model: ImageModel, repeats: int) -> Iterator[Figure]:
    """Time previews and a refinement, their parts, and the solver's share of the time."""
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
    yield Figure("previews_s", f"{PREVIEWS} previews of {PREVIEW_STEPS} steps", previews_s, goal=1.5)
    refinement_s = timed(refinement, max(1, repeats // 2))
    yield Figure("refinement_s", f"refinement of {FULL_STEPS} steps", refinement_s)
    worker.close()
    yield from measure_parts(model, repeats, previews_s)


def measure_parts(model: ImageModel, repeats: int, previews_s: float) -> Iterator[Figure]:
    """Time one denoiser call, the decoding of a picture, and the solver's arithmetic in the previews."""
    plan = make_plan("consistency", PREVIEW_STEPS, model.facts.schedule, learned=model.facts.learned)
    prompts = model.diffusion.encode([EXAMPLES[0]] * PREVIEWS)
    negatives = model.diffusion.encode([""] * PREVIEWS, negative=True)
    guidance = torch.full((PREVIEWS,), 3.0)
    noises = [noise_for_seed(seed, model.diffusion.latent_shape).to(model.device) for seed in range(PREVIEWS)]
    denoising, arithmetic = [], []
    for _ in range(repeats):
        states = [SampleState.start(plan, noise) for noise in noises]
        solver_s = 0.0
        while not states[0].done:
            began = time.perf_counter()
            inputs = torch.stack([state.model_input() for state in states])
            timesteps = torch.tensor([state.timestep for state in states])
            ready = time.perf_counter()
            outputs = model.diffusion.denoise(inputs, timesteps, prompts, negatives, guidance)
            synchronize(model.device)
            back = time.perf_counter()
            for state, output in zip(states, outputs, strict=True):
                state.step(output)
            synchronize(model.device)
            denoising.append(back - ready)
            solver_s += time.perf_counter() - back + ready - began
        arithmetic.append(solver_s)
    latents = states[0].x[None]
    decoding_s = timed(lambda: model.pictures(latents), repeats)
    share = median(arithmetic) / previews_s
    yield Figure("step_s", f"one step of {PREVIEWS} previews", median(denoising), "ms", scale=1000)
    yield Figure("decoding_s", "decoding one picture", decoding_s, "ms", scale=1000)
    yield Figure("solver_share", "solver's share of the previews", share, "%", 3, scale=100)


def measure_app(model: str, device: str) -> Iterator[Figure]:
    """Measure the app as a program of its own: its start, the first preview on the screen, its memory."""
    with running_app(model, device) as (process, url, start_s):
        yield Figure("start_s", "start until it accepts work", start_s, goal=20)
        yield from measure_page(url)
        ask(url, "preview", {"prompt": EXAMPLES[0]})
        ask(url, "refine", {"prompt": EXAMPLES[0]})
        peak = peak_memory(process.pid)
        if peak is not None:
            yield Figure("peak_memory_bytes", "peak memory of the app", peak, "GiB", 2, scale=2**-30)


@contextmanager
def running_app(
    model: str, device: str, errors: IO[str] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], str, float]]:
    """Run the app in a process of its own: yield it, its address, and the seconds until it was ready.

    Args:
        errors: file for its log, instead of this program's stderr.
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
                    raise SystemExit("The app did not start; its messages are above.")
                time.sleep(0.05)
            yield process, url, time.perf_counter() - began
        finally:
            process.terminate()
            process.wait()


def measure_page(url: str) -> Iterator[Figure]:
    """Measure the bytes of a first visit, and the time from a click to the first preview on the screen.

    Yields nothing without a browser.
    """
    browser_path = find_browser()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        browser_path = None
    if browser_path is None:
        tqdm.write("The page is not measured: Playwright or a browser is missing.", file=sys.stderr)
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=BROWSER_OPTIONS)
        page = browser.new_page()
        page.goto(url)
        page.locator("#go").wait_for()  # the page comes in parts
        yield Figure("first_visit_bytes", "first visit to the page", visit_bytes(page), "kB", MAX_KB, 1e-3)
        page.fill("#prompt input", EXAMPLES[0])
        times = [page.evaluate(PAINT_TIMER) for _ in range(4)]
        browser.close()
    shown_s = median(times[1:]) / 1000
    yield Figure("click_to_first_preview_s", "click to first preview painted", shown_s, goal=2)


def visit_bytes(page: Any) -> float:
    """Count the bytes of a first visit to a page that is open in Playwright, without its cache."""
    wire = page.context.new_cdp_session(page)
    wire.send("Network.enable")
    wire.send("Network.setCacheDisabled", {"cacheDisabled": True})
    received: list[float] = []
    wire.on("Network.loadingFinished", lambda event: received.append(event["encodedDataLength"]))
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
        raise SystemExit("A job failed; the reason is above.")


def timed(action: Callable[[], object], repeats: int) -> float:
    """Return the median of the seconds that `action` takes, after one run to warm up."""
    action()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return median(times)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def ask(url: str, endpoint: str, arguments: dict[str, object]) -> None:
    from gradio_client import Client

    Client(url, verbose=False, download_files=False).predict(**arguments, api_name=f"/{endpoint}")


def peak_memory(pid: int) -> int | None:
    """Return the peak memory of a process in bytes; None if the system does not report it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    (kilobytes,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kilobytes) * 1024


def describe_machine() -> dict[str, Any]:
    """Describe what the figures were measured on, and when."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.latency", description=__doc__)
    parser.add_argument("--model", default="landscapes", help="as for app.py (%(default)s)")
    parser.add_argument("--device", default="auto", choices=DEVICES, help="where to compute (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="runs per median (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats must be 1 or more")
    try:
        model = open_model(Choice(arguments.model, arguments.device))
    except ModelError as error:
        raise SystemExit(f"Can't start: {error}") from None
    machine = describe_machine() | {"device": str(model.device), "model": model.facts.name}
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    results: dict[str, Any] = {"machine": machine}
    figures = chain(measure_worker(model, arguments.repeats), measure_app(arguments.model, arguments.device))
    for figure in tqdm(figures, total=FIGURES, unit="figure", disable=None, leave=False):
        tqdm.write(str(figure))
        results[figure.key] = figure.value
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
