"""Jobs side by side: which was better, by how much, and how sure that is."""
