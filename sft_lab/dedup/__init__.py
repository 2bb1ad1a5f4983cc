"""Dedup: exact and semantic, the embeddings and the neighbor graph behind it, and decontamination."""
