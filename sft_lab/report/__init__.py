"""The report of a run: figures, an HTML page and a model card, all made from the run folder alone."""
