"""Whether the Hub answers: tested once per process, since its client retries each file for half a minute."""

from __future__ import annotations

from functools import cache

from sft_lab.core.log import log

TIMEOUT = 5  # seconds


@cache
def fall_back_on_cache() -> str:
    """Use only the cache for the rest of this process if the Hub does not answer.

    Returns:
        Why only the cache is used; empty if the Hub answers.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if problem := unreachable_hub():
        import datasets

        log.warning("%s; using only cached files", problem)
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    return problem


def unreachable_hub() -> str:
    """Return why the Hub does not answer a request; empty if it does."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)  # through the user's proxies; any response will do
    except Exception as error:  # noqa: BLE001 - every error of the client means the same
        return f"the Hub {constants.ENDPOINT} does not answer ({str(error) or type(error).__name__})"
    return ""
