"""The endpoints for programs: /preview and /refine, and /cancel to change one's mind."""

import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import FileData

from app.backends.base import Backend
from app.disk import cannot_keep
from app.jobs.handle import merge
from app.jobs.job import Done, Failed, Job, RequestError, Start
from app.jobs.request import build_jobs
from app.jobs.uploads import start_from
from app.page.gradio_internals import get_upload_folder

# A program fetches its pictures at once; what is older is deleted when the next ones are made.
KEEP_S = 24 * 3600


def add_endpoints(worker: Backend, pictures: Path) -> None:
    """Add the endpoints to the Blocks being built; their PNGs are written below `pictures`."""

    def preview(
        prompt: str,
        negative_prompt: str = "",
        count: int = 4,
        steps: int = 6,
        guidance: float = 3.0,
        seed: int = -1,
        solver: str = "consistency",
        picture: FileData | None = None,
        strength: float = 0.6,
        width: int = 0,
        height: int = 0,
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
            picture: a PNG, JPEG or WebP to start from, or to edit
            strength: how much of the picture is made anew, 0.05 to 1; a model that edits knows none
            width: in pixels; 0 is the model's own
            height: in pixels; 0 is the model's own
        """
        with _errors_in_words():
            jobs = build_jobs(
                "preview",
                worker.facts,
                prompt=prompt,
                negative_prompt=negative_prompt,
                count=count,
                steps=steps,
                guidance=guidance,
                seed=seed,
                solver=solver,
                width=width,
                height=height,
                start=_start(picture),
                strength=strength,
                owner=_owner(request),
            )
            return _make(worker, jobs, pictures)

    def refine(
        prompt: str,
        negative_prompt: str = "",
        seed: int = -1,
        steps: int = 40,
        guidance: float = 3.0,
        solver: str = "dpm++2m",
        picture: FileData | None = None,
        strength: float = 0.6,
        width: int = 0,
        height: int = 0,
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
            picture: a PNG, JPEG or WebP to start from, or to edit, as for the preview
            strength: how much of the picture is made anew, 0.05 to 1; a model that edits knows none
            width: in pixels; 0 is the model's own
            height: in pixels; 0 is the model's own
        """
        with _errors_in_words():
            jobs = build_jobs(
                "refine",
                worker.facts,
                prompt=prompt,
                negative_prompt=negative_prompt,
                steps=steps,
                guidance=guidance,
                seed=seed,
                solver=solver,
                width=width,
                height=height,
                start=_start(picture),
                strength=strength,
                owner=_owner(request),
            )
            files, records = _make(worker, jobs, pictures)
            return files[0], records[0]

    def cancel(request: gr.Request) -> None:
        """End whatever this client has asked for and still waits for."""
        if request.session_hash:
            worker.cancel_owner(_owner(request))

    gr.api(preview, api_name="preview", concurrency_limit=None)
    gr.api(refine, api_name="refine", concurrency_limit=None)
    # No tool for agents: each call of theirs is a client of its own.
    gr.api(cancel, api_name="cancel", concurrency_limit=None, api_visibility="undocumented")


@contextmanager
def _errors_in_words() -> Iterator[None]:
    """Pass what went wrong on to the program, in words alone."""
    try:
        yield
    except RequestError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _start(picture: Any) -> Start | None:
    return start_from(_content(picture)) if picture else None


def _content(picture: Any) -> bytes:
    """The bytes of a file that was uploaded; no other file on this machine is read, whatever is asked for."""
    named = picture.get("path") if isinstance(picture, dict) else getattr(picture, "path", None)
    try:
        path = Path(str(named)).resolve(strict=True)
        if not path.is_relative_to(Path(get_upload_folder()).resolve()):
            raise FileNotFoundError
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise RequestError("The picture to start from has not arrived here. Upload it first.") from error


def _owner(request: gr.Request | None) -> str:
    """Whoever asks, by a name that no browser's shelf has."""
    return f"program-{request.session_hash}" if request else ""


def _make(worker: Backend, jobs: Sequence[Job], pictures: Path) -> tuple[list[Any], list[dict[str, Any]]]:
    """Run the jobs to their end; gives a file (`FileData`, as JSON) and a record of each.

    Raises RequestError when one fails, or can't be written.
    """
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
    ignored = worker.facts.unknown_words(jobs[0].prompt)
    files, records = [], []
    for position, job in enumerate(jobs):
        picture, record = done[position].picture, done[position].record
        path = folder / f"{job.model.replace('/', '-')}-seed-{job.seed}-{job.steps}-steps.png"
        data = record.png(picture)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise RequestError(cannot_keep(error, pictures, len(data))) from error
        # Gradio puts its own address before this; in lists it sees files only as what they are in JSON.
        url = f"/gradio_api/file={path}"
        file = FileData(path=str(path), url=url, orig_name=path.name, mime_type="image/png")
        files.append(file.model_dump())
        records.append(
            {
                "seed": job.seed,
                "steps": job.steps,
                "solver": job.solver,
                "seconds": round(record.seconds, 4),
                "evaluations": record.evaluations,
                "guidance": job.guidance,
                "width": job.width,
                "height": job.height,
                "strength": job.start.strength if job.start and not worker.facts.edits else None,
                "model": job.model,
                "revision": record.revision,
                "decoder": record.decoder,
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
