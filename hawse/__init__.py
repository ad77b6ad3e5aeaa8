"""The launcher, and in an installed wheel the folder of all packages.

Hawse is a program and no library: nothing imports `hawse.proxy`, nor anything else by way of this.
"""
