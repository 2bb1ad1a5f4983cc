"""Evaluation: held-out loss, answers, and the verdict."""
