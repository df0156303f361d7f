"""The numeric face: NumPy arrays in and out. Checks shapes and ids once, allocates, and calls a kernel.

Knows nothing of models, tokens or files.
"""
