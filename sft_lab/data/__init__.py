"""Data: sources, row formats, split, filters, templates, tokenizing."""
