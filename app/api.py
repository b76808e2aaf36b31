"""The two endpoints for programs: /preview and /refine."""

import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import FileData

from app.backend import Backend
from app.handle import merge
from app.job import Done, Failed, Job, Kind, RequestError, check_number
from app.seeds import following_seeds, fresh_seeds

# A program fetches its pictures at once; what is older is deleted when the next ones are made.
KEEP_S = 24 * 3600


def add_endpoints(worker: Backend, pictures: Path) -> None:
    """Add /preview and /refine to the Blocks being built; their PNGs are written below `pictures`."""

    def preview(
        prompt: str,
        negative_prompt: str = "",
        count: int = 4,
        steps: int = 6,
        guidance: float = 3.0,
        seed: int = -1,
        solver: str = "consistency",
        request: gr.Request | None = None,
    ) -> tuple[list[FileData], list[dict[str, Any]]]:
        """Quick previews of a prompt: PNG files, and for each how it was made. Refine the one you like best.

        Args:
            prompt: what to see
            negative_prompt: what should not be in the pictures
            count: how many previews, 1 to 8
            steps: solver steps, 1 to 100; few are enough for a preview
            guidance: how literally to take the prompt, 1 to 30
            seed: of the first preview, the others follow it; -1 draws fresh seeds
            solver: the learned one, consistency, or a classical one such as unipc
        """
        with _errors_in_words():
            seeds = _seeds(seed, int(check_number("count", count)))
            settings = (prompt, negative_prompt, steps, guidance, solver)
            jobs = _jobs(worker, "preview", settings, seeds, request)
            return _make(worker, jobs, pictures)

    def refine(
        prompt: str,
        negative_prompt: str = "",
        seed: int = -1,
        steps: int = 40,
        guidance: float = 3.0,
        solver: str = "dpm++2m",
        request: gr.Request | None = None,
    ) -> tuple[FileData, dict[str, Any]]:
        """The full-step picture of a prompt and a seed, such as a preview's: a PNG file, and how it was made.

        Args:
            prompt: what to see, as for the preview
            negative_prompt: what should not be in the picture, as for the preview
            seed: the preview's; -1 draws a fresh one
            steps: solver steps, 1 to 100
            guidance: how literally to take the prompt, as for the preview
            solver: the solver of the many steps
        """
        with _errors_in_words():
            settings = (prompt, negative_prompt, steps, guidance, solver)
            jobs = _jobs(worker, "refine", settings, _seeds(seed, 1), request)
            files, records = _make(worker, jobs, pictures)
            return files[0], records[0]

    gr.api(preview, api_name="preview", concurrency_limit=None)
    gr.api(refine, api_name="refine", concurrency_limit=None)


@contextmanager
def _errors_in_words() -> Iterator[None]:
    """Pass a RequestError on to the program as its message alone."""
    try:
        yield
    except RequestError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _jobs(
    worker: Backend,
    kind: Kind,
    settings: tuple[str, str, int, float, str],
    seeds: Sequence[int],
    request: gr.Request | None,
) -> list[Job]:
    """One job for each seed; `settings` are prompt, negative prompt, steps, guidance and solver."""
    prompt, negative_prompt, steps, guidance, solver = settings
    return [
        Job(
            kind=kind,
            prompt=prompt,
            negative_prompt=negative_prompt,
            seed=seed,
            steps=steps,
            guidance=guidance,
            solver=solver,
            model=worker.facts.name,
            width=worker.facts.width,
            height=worker.facts.height,
            owner=_owner(request),
        )
        for seed in seeds
    ]


def _owner(request: gr.Request | None) -> str:
    return str(request.session_hash) if request else ""


def _seeds(seed: object, count: int) -> list[int]:
    if seed == -1:
        return fresh_seeds(count)
    return following_seeds(int(check_number("seed", seed)), count)


def _make(
    worker: Backend, jobs: Sequence[Job], pictures: Path
) -> tuple[list[FileData], list[dict[str, Any]]]:
    """Run the jobs to their end. Raises RequestError when one fails."""
    handles = worker.submit_all(jobs)
    done: dict[int, Done] = {}
    try:
        for position, event in merge(handles):
            if isinstance(event, Done):
                done[position] = event
            elif isinstance(event, Failed):
                raise RequestError(event.message)
    finally:
        for handle in handles:
            handle.cancel()
    if len(done) < len(jobs):
        raise RequestError("The request was cancelled.")
    _delete_old(pictures)
    folder = pictures / secrets.token_hex(16)  # so that nobody can guess where another's pictures are
    folder.mkdir(parents=True)
    ignored = worker.facts.unknown_words(jobs[0].prompt)
    files, records = [], []
    for position, job in enumerate(jobs):
        picture, record = done[position].picture, done[position].record
        path = folder / f"{job.model.replace('/', '-')}-seed-{job.seed}-{job.steps}-steps.png"
        path.write_bytes(record.png(picture))
        files.append(FileData(path=str(path), orig_name=path.name, mime_type="image/png"))
        records.append(
            {
                "seed": job.seed,
                "steps": job.steps,
                "solver": job.solver,
                "seconds": round(record.seconds, 4),
                "evaluations": record.evaluations,
                "guidance": job.guidance,
                "model": job.model,
                "revision": record.revision,
                "ignored_words": ignored,
            }
        )
    return files, records


def _delete_old(pictures: Path) -> None:
    for folder in pictures.glob("*/"):
        try:
            if time.time() - folder.stat().st_mtime > KEEP_S:
                shutil.rmtree(folder)
        except FileNotFoundError:
            continue  # another request was faster
