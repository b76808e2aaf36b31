"""The endpoints for programs and agents: /preview, /refine and /cancel."""

import json
import secrets
import shutil
import threading
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import FileData

from app.backends.base import Backend
from app.disk import cannot_keep
from app.jobs.handle import merge
from app.jobs.job import Busy, Done, Failed, Job, Kind, Record, RequestError
from app.jobs.request import build_jobs
from app.jobs.uploads import start_from
from app.models import ModelFacts
from app.page.gradio_internals import (
    NOT_UPLOADED,
    client_session,
    current_request,
    encode_file_path,
    get_upload_folder,
    has_client_left,
    is_file_obj_with_meta,
    is_queued,
    traverse,
)
from app.server.limits import person_of
from app.server.settings import FIELDS

ANSWER_WAIT_S: float = FIELDS["answer_wait"].default
# Calls wait so long for a model that is loading, and so many at a time: each takes a thread of the server.
LOADING_WAIT_S = 60.0
_WAITING = threading.Semaphore(16)
# Calls that run at a time: through the queue, where others wait for a place, and directly, where others are
# refused. Each takes a thread until its pictures are done; MAX_THREADS leaves some to the page.
MAX_CALLS, MAX_DIRECT = 32, 16
MAX_THREADS = 64
TOO_MANY_DIRECT = (
    "Too many requests wait for their answers on open connections. Send this one to /gradio_api/call/, where "
    "it waits for its turn, or try again in a minute."
)


def add_endpoints(backend: Backend, pictures: Path, answer_wait_s: float = ANSWER_WAIT_S) -> None:
    """Add the endpoints to the Blocks that are open.

    Args:
        pictures: folder below which their PNGs are written.
        answer_wait_s: seconds within which a client must open the stream of its answer, or its request ends.
    """

    direct = threading.Semaphore(MAX_DIRECT)

    @contextmanager
    def place() -> Iterator[None]:
        if is_queued():
            yield
        elif direct.acquire(blocking=False):
            try:
                yield
            finally:
                direct.release()
        else:
            raise Busy(TOO_MANY_DIRECT)

    def answer(kind: Kind, picture: Any, **values: Any) -> tuple[list, list]:
        try:
            with place():
                start = start_from(_uploaded(picture)) if picture else None
                jobs = build_jobs(kind, _facts_of(backend), **values, start=start, owner=_owner())
                return _make(backend, jobs, pictures, answer_wait_s)
        except RequestError as error:
            raise gr.Error(str(error), print_exception=False) from error

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
    ) -> tuple[list[FileData], list[dict[str, Any]]]:
        """Make quick previews of a prompt: PNG files and a record of each. Refine the one you like best.

        Args:
            prompt: what the pictures should show
            negative_prompt: what the pictures should not show
            count: number of previews, 1 to 8
            steps: solver steps, 1 to 100; few are enough for a preview
            guidance: guidance scale, 1 to 30 (from 0 where 0 is none); higher follows the prompt more closely
            seed: of the first preview, the others follow it; -1 draws fresh seeds
            solver: the learned one, consistency, or a classical one such as unipc
            picture: a PNG, JPEG or WebP to start from or to edit
            strength: how far to depart from the picture, 0.05 to 1; a model that edits ignores it
            width: in pixels; 0 is the model's own
            height: in pixels; 0 is the model's own
        """
        return answer(
            "preview",
            picture,
            prompt=prompt,
            negative_prompt=negative_prompt,
            count=count,
            steps=steps,
            guidance=guidance,
            seed=seed,
            solver=solver,
            strength=strength,
            width=width,
            height=height,
        )

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
    ) -> tuple[FileData, dict[str, Any]]:
        """Make the full-step picture of a prompt and a seed, such as a preview's: a PNG file and its record.

        Args:
            prompt: what the picture should show, as for the preview
            negative_prompt: what the picture should not show, as for the preview
            seed: the preview's; -1 draws a fresh one
            steps: solver steps, 1 to 100
            guidance: guidance scale, as for the preview
            solver: the solver of the many steps
            picture: a PNG, JPEG or WebP to start from or to edit, as for the preview
            strength: how far to depart from the picture, 0.05 to 1; a model that edits ignores it
            width: in pixels; 0 is the model's own
            height: in pixels; 0 is the model's own
        """
        files, records = answer(
            "refine",
            picture,
            prompt=prompt,
            negative_prompt=negative_prompt,
            steps=steps,
            guidance=guidance,
            seed=seed,
            solver=solver,
            strength=strength,
            width=width,
            height=height,
        )
        return files[0], records[0]

    def cancel() -> None:
        """Stop the pending requests of this client's session."""
        if client_session():
            backend.cancel_owner(_owner())

    together: dict[str, Any] = {"concurrency_limit": MAX_CALLS, "concurrency_id": "calls"}
    gr.api(preview, api_name="preview", **together)
    gr.api(refine, api_name="refine", **together)
    # Not a tool for agents: each of their calls is a client of its own.
    gr.api(cancel, api_name="cancel", concurrency_limit=None, api_visibility="undocumented")


def _facts_of(backend: Backend) -> ModelFacts:
    """Wait until the model is loaded. Raises Busy, with when to come back, if that takes too long."""
    waits = _WAITING.acquire(blocking=False)
    until = time.monotonic() + (LOADING_WAIT_S if waits else 0)
    try:
        while True:
            try:
                return backend.facts
            except Busy as error:
                if time.monotonic() >= until or not backend.healthy:
                    raise Busy("The model is still loading. Please call again in a minute.") from error
                time.sleep(0.2)
    finally:
        if waits:
            _WAITING.release()


def _uploaded(picture: Any) -> bytes:
    """Read a file that was uploaded. Raises RequestError for any other file on this machine."""
    named = picture.get("path") if isinstance(picture, dict) else getattr(picture, "path", None)
    try:
        path = Path(str(named)).resolve(strict=True)
        if not path.is_relative_to(Path(get_upload_folder()).resolve()):
            raise FileNotFoundError
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise RequestError(NOT_UPLOADED) from error


def _owner() -> str:
    """Return the client of the running event as owner of its jobs; no browser's shelf has such a name.

    That is its session, which it alone knows, or else the person: their requests share one person's turns.
    """
    session = client_session()
    return f"session {session}" if session else f"programs of {person_of(current_request())}"


def _make(
    backend: Backend, jobs: Sequence[Job], pictures: Path, answer_wait_s: float = ANSWER_WAIT_S
) -> tuple[list, list]:
    """Run jobs to their end; return a file (`FileData` as JSON) and a record of each.

    Raises RequestError if one fails or can't be written, or if nobody waits for the answer any more, see
    `has_client_left`; that cancels them all.
    """
    handles = backend.submit_all(jobs)
    done: dict[int, Done] = {}
    try:
        for position, event in merge(handles, partial(has_client_left, answer_wait_s)):
            if isinstance(event, Done):
                done[position] = event
            elif isinstance(event, Failed):
                raise RequestError(event.message)
    finally:
        for handle in handles:
            handle.cancel()
    if len(done) < len(jobs):
        raise RequestError("The request was cancelled.")
    folder = pictures / secrets.token_hex(16)  # other clients can't guess it
    files = []
    for position, job in enumerate(jobs):
        path = folder / f"{job.model.replace('/', '-')}-seed-{job.seed}-{job.steps}-steps.png"
        data = done[position].record.png(done[position].picture)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise RequestError(cannot_keep(error, pictures, len(data))) from error
        # Gradio puts its own address before this. In lists it knows files only as JSON.
        url = f"/gradio_api/file={path}"
        file = FileData(path=str(path), url=url, orig_name=path.name, mime_type="image/png")
        files.append(file.model_dump())
    return files, [_record_of(done[position].record, backend.facts) for position in range(len(jobs))]


def _record_of(record: Record, facts: ModelFacts) -> dict[str, Any]:
    job = record.job
    return {
        **{
            name: getattr(job, name)
            for name in ("seed", "steps", "solver", "guidance", "width", "height", "model")
        },
        "seconds": round(record.seconds, 4),
        "evaluations": record.evaluations,
        "strength": job.start.strength if job.start and not facts.edits else None,
        "revision": record.revision,
        "decoder": record.decoder,
        "ignored_words": facts.unknown_words(job.prompt),
    }


def tool_answer(types: Any, data: Any, root_url: str) -> list[Any]:
    """Return an endpoint's outputs for an agent: each PNG, then all as JSON with addresses in place of files.

    Args:
        types: the module `mcp.types`.
        data: the outputs.
        root_url: the app's address as the agent sees it.
    """
    pictures: list[Any] = []

    def address(file: Mapping[str, Any]) -> str:
        picture = b64encode(Path(file["path"]).read_bytes()).decode()
        pictures.append(types.ImageContent(type="image", data=picture, mimeType="image/png"))
        return f"{root_url.rstrip('/')}/gradio_api/file={encode_file_path(file['path'])}"

    text = json.dumps(traverse(data, address, is_file_obj_with_meta), ensure_ascii=False)
    return [*pictures, types.TextContent(type="text", text=text)]
