"""Our methods against what the reference implementations gave for made-up inputs.

Each .json holds numbers that the project and commit under `source` computed once; nothing here is code of theirs. The
test of the same name makes the inputs again, from numpy's frozen `RandomState`, and compares what the library gives.
"""
