"""A run: its config, its identity and its checks, and the session that carries it out."""
