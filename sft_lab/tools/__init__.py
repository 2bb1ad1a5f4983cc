"""Commands for a machine or a finished run: doctor, generate, merge, push, test scores."""
