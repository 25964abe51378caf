"""A Dask cluster that does the work of a search: `--scheduler tcp://host:8786`."""

import importlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from edgepress.compressor.cache import tool_digest
from edgepress.compressor.errors import DeviceError, UsageError

ANSWER_SECONDS = 20
"""How long a scheduler may take to answer."""


def connect(
    address: str, package: Any, perform: Callable[[Any, Any], Any]
) -> tuple[Callable[[Any], Future[Any]], Callable[[], None]]:
    """What hands a cluster a task, and what takes leave of it.

    The package is sent to every worker once. A task whose worker is lost is done again by another one.

    Args:
        address: of the scheduler, such as `tcp://host:8786`.
        package: first argument of `perform`.
        perform: does a task.

    Raises:
        UsageError: Dask is not installed, or workers run another release than this process.
        DeviceError: the scheduler does not answer, or has no workers.
    """
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError as error:
        raise UsageError("--scheduler needs Dask.", "pip install 'edgepress[cluster]'") from error
    try:
        client = distributed.Client(address, timeout=ANSWER_SECONDS, set_as_default=False)
        client.wait_for_workers(1, timeout=ANSWER_SECONDS)
    except (OSError, TimeoutError, ValueError) as error:
        raise DeviceError(
            f"The scheduler at {address} does not answer, or has no workers ({error}).",
            "Start one with `dask scheduler`, and workers with `dask worker ADDRESS`.",
        ) from error
    try:
        others = set(client.run(tool_digest).values())
    except Exception as error:
        raise UsageError(
            f"The workers at {address} cannot import edgepress: {error}", "Install the same release there."
        ) from error
    if others != {tool_digest()}:
        raise UsageError(
            f"The workers at {address} have another edgepress, or other libraries, than this machine.",
            "Install the same releases everywhere: the same recipe must give the same model.",
        )
    sent = client.scatter(package, broadcast=True, hash=False)
    executor = client.get_executor()
    return lambda task: executor.submit(perform, sent, task), client.close
