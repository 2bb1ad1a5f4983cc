"""What a run leaves for its reader: figures, an HTML page and a model card, all made from the run folder alone."""
