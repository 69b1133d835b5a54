"""The command line `thesis`: options go in, one call of the library each, lines and an exit code come out.

Nothing is computed here that a Python caller could not have.
"""
