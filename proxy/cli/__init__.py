# Here, since both the entry point, which imports little, and the group of commands exit with it.
# The exit status after Ctrl-C, as in shells: 128 plus the signal's number.
INTERRUPTED = 130
