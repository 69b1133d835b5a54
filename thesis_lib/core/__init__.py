"""What every machine needs, a Raspberry Pi too: files, result rows, the timing protocol, pictures as arrays.

In comes a path or a callable, out goes an array, a row or a time. Neither torch nor pandas is imported here, and
nothing that knows a network or a method belongs here.
"""
