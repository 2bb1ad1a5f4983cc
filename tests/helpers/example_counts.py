"""The two hypothesis profiles of these tests, of which conftest chooses one by the marker asked for."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

FEW, MANY, CHOSEN = "sft_lab-few", "sft_lab-many", "sft_lab-chosen"
OF_BOTH = {
    "deadline": None,
    "database": None,
    "phases": [Phase.explicit, Phase.generate, Phase.shrink],  # explaining a failure takes minutes
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
}

# Derandomized, so that the quick suite is the same every time and in CI.
settings.register_profile(FEW, max_examples=20, derandomize=True, **OF_BOTH)
settings.register_profile(MANY, max_examples=2000, print_blob=True, **OF_BOTH)


def choose(name: str) -> None:
    settings.register_profile(CHOSEN, settings.get_profile(name))


def tried(few: int = 20, many: int = 2000) -> settings:
    """The chosen profile, not loaded: that would be every other test's too. Fewer examples where one takes long."""
    chosen = settings.get_profile(CHOSEN)
    return settings(chosen, max_examples=few if chosen.derandomize else many)
