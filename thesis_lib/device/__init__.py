"""A fitted detector goes in, a folder for a small computer comes out, and there it is measured and detects.

`bundle` and `run` need no torch; `export`, which does, is for the desktop. Networks and methods do not belong here.
"""
