"""Jobs and their folders: finding a job's folder, seeing whether it is finished, and starting it."""
