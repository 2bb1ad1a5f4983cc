"""The logger of sft_lab."""

import logging

log = logging.getLogger("sft_lab")
