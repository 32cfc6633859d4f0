"""Listens inside an engine to which experts its tokens take.

A distribution of its own that needs nothing, for it is imported by engines whatever else they have.
It is not installed into their environments: servers that are timed run in these as well, and some
belong to the user. A server that counts experts finds it by its PYTHONPATH, and no other can.
"""
