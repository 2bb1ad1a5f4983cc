"""Dedup (exact, MinHash, semantic) with its embeddings and neighbor graph, and decontamination."""
