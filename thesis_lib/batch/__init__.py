"""Notebooks and a profile go in, executed pages come out, each from a process of its own, here or on a cluster.

What a notebook computes does not belong here: this room knows `core` and `data` alone.
"""
