"""The command line: one file per verb. The only room that prints; see also :mod:`imagebuilder.__main__`."""
