"""The launcher. In an installed wheel, this folder contains all packages.

Hawse is a program, not a library: no code imports `hawse.proxy`, or anything else through this package.
"""
