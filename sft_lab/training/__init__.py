"""Training: models, trainer knobs, and the one adapter to TRL."""
