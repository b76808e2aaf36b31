"""Start the app: python app.py, then open http://127.0.0.1:7860."""

import argparse
import os
import socket
import sys
from pathlib import Path

from app.backends import BACKENDS, start


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python app.py",
        description="Quick previews of a prompt; pick one, and only that one is finished.",
    )
    parser.add_argument(
        "--host",
        default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),  # a Space sets it
        help="address to listen on; 0.0.0.0 for other machines too (%(default)s)",
    )
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (%(default)s)")
    parser.add_argument(
        "--model",
        default="landscapes",
        help="a shipped model by name, or a folder in the diffusers layout (%(default)s)",
    )
    parser.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda", "mps"),
        help="where to compute (%(default)s)",
    )
    parser.add_argument(
        "--backend",
        default="auto",
        choices=("auto", *BACKENDS),
        help="what makes the pictures; auto is zerogpu on a ZeroGPU Space, else local (%(default)s)",
    )
    parser.add_argument(
        "--replicas",
        type=int,
        metavar="N",
        help="with --backend ray: how many workers (one per GPU, or one)",
    )
    parser.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="with --backend ray: a running cluster to join, such as auto (a new one on this machine)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="all that is written goes here (%(default)s)",
    )
    arguments = parser.parse_args()
    if arguments.backend != "ray" and (arguments.replicas is not None or arguments.ray_address):
        parser.error("--replicas and --ray-address go with --backend ray")
    if arguments.replicas is not None and arguments.replicas < 1:
        parser.error("--replicas must be 1 or more")
    return arguments


def prepare_environment(data: Path) -> None:
    """Keep the libraries off the network and their files below `data`; they read this when imported."""
    os.environ["GRADIO_TEMP_DIR"] = str(data / "gradio")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HOME"] = str(data / "huggingface")
    os.environ["MPLCONFIGDIR"] = str(data / "matplotlib")
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = os.environ["DIFFUSERS_VERBOSITY"] = "error"


def check_address(host: str, port: int) -> None:
    """Raise OSError now, before the long loading, where the app could not listen."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def refuse(reason: object) -> int:
    """Say why the app can't start; gives the exit code."""
    print(f"Can't start: {reason}", file=sys.stderr)
    return 2


def main() -> int:
    arguments = parse_arguments()
    host, port, data = arguments.host, arguments.port, arguments.data.resolve()
    prepare_environment(data)
    pictures = data / "gradio" / "pictures"
    try:
        pictures.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return refuse(f"nothing can be written to {data} ({error.strerror}). Choose another --data.")
    try:
        check_address(host, port)
    except (OSError, OverflowError) as error:
        return refuse(f"can't listen on {host}:{port} ({error}). Choose another --port or --host.")
    print(f"Loading {arguments.model} …", flush=True)

    # Imported only now: these take seconds, and --help should not.
    from app.models import ModelError, resolve
    from app.ui import build_page, launch_page

    options = {}
    if arguments.backend == "ray":
        options = {"data": data, "replicas": arguments.replicas, "address": arguments.ray_address}
    try:
        worker = start(arguments.backend, resolve(arguments.model), arguments.device, **options)
    except ModelError as error:
        return refuse(error)
    page = build_page(worker, pictures)
    url = launch_page(page, host, port)
    print(f"Ready: {url} (Ctrl+C stops it)", flush=True)
    page.block_thread()
    worker.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
