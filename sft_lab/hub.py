"""Whether the Hub answers: asked once, since its client would try each file for half a minute."""

from __future__ import annotations

from functools import cache

from sft_lab.bench import log

SECONDS = 5  # to wait for any answer


@cache
def fall_back_on_cache() -> None:
    """Turn to what is cached, for the rest of this process, where the Hub does not answer."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)  # with the user's proxies; any answer will do
    except Exception as error:  # noqa: BLE001 - whatever its client raises means the same
        import datasets

        said = str(error) or type(error).__name__
        log.warning(
            "the Hub %s does not answer (%s); only what was downloaded before is used", constants.ENDPOINT, said
        )
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
