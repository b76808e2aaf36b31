"""Start the Ray Serve backend: join a Ray cluster or start one here, and deploy replicas of the worker."""

import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from app.catalogue import entry_for, is_local, name_of
from app.models import Choice, ModelError
from app.models.opening import find_chosen
from app.models.preview_decoder import AUTO, OFF

try:
    import ray
    from ray import serve
    from ray.serve.handle import DeploymentHandle
    from ray.serve.schema import LoggingConfig
except ImportError as error:
    raise ModelError(
        f"Ray Serve can't be imported ({error}). Install it: pip install -r requirements-ray.txt"
    ) from error

from app.backends.replica import ReplicaSettings, application
from app.backends.replicas import Replicas, first_line

# Name of the application within Serve.
NAME = "diffusion-preview"
# Time limit for running replicas to return their model's facts.
ANSWER_S = 60.0
# Time limit for a connection to the cluster's address.
CONNECT_S = 5.0
# Only finished pictures on their way to the page are in the store.
OBJECT_STORE_BYTES = 150_000_000
# Ray puts sockets there, with names of 64 characters; the system allows paths of 103 to 107.
LONGEST_FOLDER = 39


def start(
    choice: Choice,
    data: Path = Path("data"),
    replicas: int | None = None,
    address: str | None = None,
) -> Replicas:
    """Start replicas for a model, or use running ones; see `app.backends.start`.

    An application that `serve run` or KubeRay has started is used as it is, and left running.

    Args:
        data: folder for the files of a Ray cluster that is started here.
        replicas: number of replicas; by default one per GPU, or one.
        address: of a running Ray cluster, or "auto" for the one on this machine. By default a cluster of this
            machine alone is started, and stopped with the app.

    Raises:
        ModelError: the cluster or the model cannot be used.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    _connect(address, data.resolve() / "ray")
    stop: Callable[[], None] = ray.shutdown
    try:
        if NAME in serve.status().applications:
            calls = serve.get_app_handle(NAME)
        else:
            if address:
                stop = _delete
            calls = _deploy(choice, replicas)
        facts = calls.facts.remote().result(timeout_s=ANSWER_S)
        if facts.name != name_of(choice.model):
            raise ModelError(
                f"This cluster runs {facts.name} already. Start the app with that --model, or end the other "
                "with `serve shutdown`."
            )
    except TimeoutError as error:
        stop()
        raise ModelError(
            "The replicas on this cluster do not answer. `serve status` says why; `serve shutdown` ends them."
        ) from error
    except BaseException:
        stop()
        raise
    return Replicas(facts, calls, stop)


def _connect(address: str | None, folder: Path) -> None:
    """Join the cluster at `address`, or start one that keeps its files in `folder`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    if address:
        try:
            _check_connection(address)
            ray.init(address, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"There is no Ray cluster to join at {address} ({first_line(error)}). Start one with "
                "`ray start --head`, or leave out --ray-address."
            ) from error
        return
    if len(os.fsencode(folder)) > LONGEST_FOLDER and sys.platform != "win32":
        raise ModelError(
            f"Ray can't work in {folder}: the path has more than {LONGEST_FOLDER} characters. Choose a "
            "shorter --data, such as /tmp/preview."
        )
    try:
        ray.init(
            "local",
            **quiet,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(folder),
        )
    except Exception as error:  # Ray has no exception class for this
        raise ModelError(
            f"Ray can't start on this machine ({first_line(error)}). Its logs are in {folder}."
        ) from error


def _check_connection(address: str) -> None:
    """Raise OSError if nothing listens at the address; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), CONNECT_S).close()


def _deploy(choice: Choice, replicas: int | None) -> DeploymentHandle:
    """Run the replicas, and wait until they are ready."""
    if is_local(choice.model):
        # Fail at once where replicas would fail after a minute. Their working folder is another one.
        found = find_chosen(choice)
        choice = choice if entry_for(choice.model) else replace(choice, model=str(found.path.resolve()))
    solver, configs = (path and path.resolve() for path in (choice.solver, choice.configs))
    decoder = choice.preview_decoder
    decoder = decoder if decoder in (AUTO, OFF) else str(Path(decoder).expanduser().resolve())
    choice = replace(choice, solver=solver, configs=configs, preview_decoder=decoder)
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(each.get("GPU", 0) for each in resources)) if choice.device in ("auto", "cuda") else 0
    replicas = replicas or gpus or 1
    if gpus and replicas > gpus:
        raise ModelError(f"{replicas} replicas need a GPU each, and there are {gpus}. Lower --replicas.")
    settings = ReplicaSettings(
        **asdict(choice),
        fewest=replicas,
        most=replicas,
        cpus=1 if gpus else cpus_each([each.get("CPU", 0) for each in resources], replicas),
        gpus=1 if gpus else 0,
    )
    quiet = LoggingConfig(log_level="WARNING")
    serve.start(proxy_location="Disabled", logging_config=quiet)
    try:
        return serve.run(application(settings), name=NAME, route_prefix=None, logging_config=quiet)
    except RuntimeError as error:
        # Serve's message ends with the replica's traceback, and that with the error.
        reason = str(error).strip().splitlines()[-1]
        raise ModelError(reason.split("ModelError: ")[-1]) from error


def _delete() -> None:
    """Delete the application from a cluster that stays up, and leave the cluster."""
    if NAME in serve.status().applications:
        serve.delete(NAME)
    ray.shutdown()


def cpus_each(machines: Sequence[float], replicas: int) -> float:
    """Return the largest number of CPUs for each replica, given those of the machines; may be below one.

    Raises:
        ModelError: there are no CPUs.
    """
    if sum(machines) <= 0:
        raise ModelError(
            "The Ray cluster has no CPUs for replicas. Add a machine with `ray start --address`."
        )
    for cpus in range(int(sum(machines)) // replicas, 0, -1):
        if sum(int(machine) // cpus for machine in machines) >= replicas:
            return cpus
    return sum(machines) / replicas
