"""Tracking: the local record comes first, Weights & Biases mirrors it."""
