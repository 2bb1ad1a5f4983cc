"""Data: sources, row formats, split, filters, templates, tokenizing. Where rows are made and most are dropped."""
