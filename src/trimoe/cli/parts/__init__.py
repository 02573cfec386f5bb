"""Pieces of the command line that several verbs share."""
