"""Start the app: `python app.py`, `python -m app` or, installed, `diffusion-preview`."""

import os
import socket
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from app.catalogue import is_local
from app.server import auth, data_folder
from app.server.logs import start_logging
from app.server.settings import Settings, describe, read


def prepare_environment(
    data: Path, model: str, configs: Path | None = None, dataset: str | None = None
) -> None:
    """Keep libraries off the network and their files below `data`, by variables that they read when imported.

    Only a model or dataset on the hub needs the network; then the hub's usual folder has cache and login.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(data / "gradio")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["MPLCONFIGDIR"] = str(data / "matplotlib")
    if is_local(model) and (configs or not model.endswith(".safetensors")) and not dataset:
        os.environ["HF_HOME"] = str(data / "huggingface")
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = os.environ["DIFFUSERS_VERBOSITY"] = "error"


def check_address(host: str, port: int) -> None:
    """Raise OSError if the app could not listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def check(settings: Settings) -> dict[str, auth.PasswordHash]:
    """Check what can be checked before the model is loaded, and make --data; return who may log in.

    Raises ValueError with a message for the operator.
    """
    data_folder.make(settings.data.resolve())
    places = [(settings.host, settings.port, "--port or --host")]
    if settings.metrics_port:
        places.append((settings.metrics_host, settings.metrics_port, "--metrics-port or --metrics-host"))
    for host, port, flags in places:
        try:
            check_address(host, port)
        except (OSError, OverflowError) as error:
            raise ValueError(f"can't listen on {host}:{port} ({error}). Choose another {flags}.") from error
    if settings.mcp and not find_spec("mcp"):
        raise ValueError("--mcp needs packages that are missing: pip install -r requirements-mcp.txt")
    if settings.study:
        from app.study.plan import read_study  # imports torch

        read_study(settings.study)
    return auth.read(settings.auth) if settings.auth else {}


def refuse(reason: object) -> int:
    """Print why the app can't start; return the exit code."""
    lines = str(reason).splitlines()
    print(
        "\n  ".join(["Can't start:", *lines]) if len(lines) > 1 else f"Can't start: {reason}", file=sys.stderr
    )
    return 2


def main() -> int:
    """Serve the app until it is stopped; return the exit code."""
    os.umask(0o077)  # what it writes is for nobody else
    try:
        settings = read(sys.argv[1:])
        users, data = check(settings), settings.data.resolve()
        lock = data_folder.claim(data)
    except ValueError as error:
        return refuse(error)
    if warning := data_folder.warning(data):
        print(f"Note: {warning}", file=sys.stderr, flush=True)
    prepare_environment(data, settings.model, settings.configs, settings.study_dataset)
    start_logging(settings.log_format, settings.log_level)
    print(f"Settings: {describe(settings)}", flush=True)
    print(f"Loading {settings.model} …", flush=True)

    # Imported here, since it takes seconds: --help should be quick.
    from app.backends import loads_beside, start
    from app.backends.loading import Loading
    from app.models import Choice, ModelError
    from app.server import service, temporary
    from app.study.serving import open_page

    options = {}
    if settings.backend == "ray":
        options = {"data": data, "replicas": settings.replicas, "address": settings.ray_address}
    choice = Choice(
        model=settings.model,
        device=settings.device,
        solver=settings.solver,
        safety_checker=settings.safety_checker,
        offload=settings.offload,
        configs=settings.configs,
        compiled=settings.compile,
        preview_decoder=settings.preview_decoder,
    )
    load = partial(start, settings.backend, choice, **options)
    try:
        backend = Loading(load) if loads_beside(settings.backend) else load()
    except ModelError as error:
        return refuse(error)
    temporary.keep_clean(data / "gradio")
    stop = service.Stop()
    metered = service.meter(settings, backend)
    try:
        opened = open_page(settings, metered)
        if not isinstance(backend, Loading):
            opened.check(metered)
    except ValueError as error:
        return refuse(error)
    page = opened.page
    try:
        url = service.launch_page(
            page, settings.host, settings.port, **service.launch_options(settings, metered, users)
        )
    except OSError:
        return refuse(
            f"nothing listens on {settings.host}:{settings.port}. Something else has just taken the port, "
            "or the machine is too busy. Try again, or choose another --port."
        )
    if isinstance(backend, Loading):
        print(f"The page is at {url}; the model is still loading", flush=True)
        try:
            service.count_ticks(backend.wait(), metered.metrics)
            opened.check(metered)
        except (ModelError, ValueError) as error:
            page.close(verbose=False)
            return refuse(error)
    for warning in metered.facts.warnings:
        print(f"Note: {warning}", flush=True)
    print(f"Ready: {url} (Ctrl+C stops it)", flush=True)
    stop.wait()
    service.end(page, metered, settings.grace)
    opened.close()
    if lock:
        lock.release()
    return 0


if __name__ == "__main__":
    sys.exit(main())
