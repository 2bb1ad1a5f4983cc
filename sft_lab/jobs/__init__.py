"""Jobs: a job is a folder. Which folder it is, whether it is finished, and how it is started."""
