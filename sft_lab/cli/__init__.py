"""The command line: arguments, one function per command, and what is printed."""
