"""The connection to a Ray cluster, for jobs and for blocks of rows."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sft_lab.core.errors import UserError

OBJECT_STORE_BYTES = 80 * 2**20  # for objects that tasks share; the smallest that Ray accepts, since ours share little


def imported() -> Any:
    """Import Ray without usage statistics, a setting that it reads on import, and return it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    return ray


@contextmanager
def connected(address: str | None, key: str, num_gpus: int = 0) -> Iterator[None]:
    """Join a cluster, or start one on this machine and shut it down afterwards.

    Args:
        address: of the cluster; None: one is started.
        key: the config key of the address, for the error.
        num_gpus: of a cluster that is started.

    Raises:
        UserError: if no cluster answers.
    """
    ray = imported()
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}
    try:
        if address:
            _require_answer(address)
            ray.init(address=address, **quiet)
        else:
            # "local" even if $RAY_ADDRESS names a cluster. It listens on this machine only, since anyone who reaches
            # a Ray cluster can run code on it.
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                num_gpus=num_gpus,
                _node_ip_address="127.0.0.1",
                **quiet,
            )
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{key}={address}: no Ray cluster answers at this address ({reason}); start one with `ray start --head`, "
            "set RAY_AUTH_MODE=token if it requires a token, or leave the address out to use only this machine"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Connect to ``host:port`` once; Ray itself would try for minutes.

    Raises:
        OSError, ValueError: if nothing answers, or the address is malformed.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=10).close()
