"""Whether the Hub answers: asked once, since its client would try each file for half a minute."""

from __future__ import annotations

from functools import cache

from sft_lab.core.log import log

SECONDS = 5  # to wait for any answer


@cache
def fall_back_on_cache() -> None:
    """Turn to what is cached, for the rest of this process, where the Hub does not answer."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    if said := silence():
        import datasets

        log.warning("%s; only what was downloaded before is used", said)
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True


def silence() -> str:
    """Ask the Hub for anything and say why it does not answer; empty when it does."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)  # with the user's proxies; any answer will do
    except Exception as error:  # noqa: BLE001 - whatever its client raises means the same
        return f"the Hub {constants.ENDPOINT} does not answer ({str(error) or type(error).__name__})"
    return ""
