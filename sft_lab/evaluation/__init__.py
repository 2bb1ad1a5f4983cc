"""Evaluation: held-out loss, samples and the verdict."""
