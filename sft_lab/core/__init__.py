"""What every package rests on: errors, files, the run folder, the stage store, rows, and the tools of a stage."""
