"""The contestants of a bench: the ways to answer from K policies that are compared.

Each contestant runs in a process of its own (`worker`), is started from `settings` on `models`, and
answers the same `job`.
"""
