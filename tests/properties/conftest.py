"""How hard the properties are tried: a few repeatable examples in the quick suite, thousands under ``-m faults``."""

from __future__ import annotations

from pathlib import Path

import pytest
from example_counts import FEW, MANY, choose

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    choose(MANY if config.getoption("markexpr") == "faults" else FEW)


@pytest.hookimpl(tryfirst=True)  # before marks are looked at
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("markexpr") == "faults":
        for item in items:
            if item.path.parent == HERE and getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
                item.add_marker("faults")
                item.add_marker(pytest.mark.timeout(3600))
