"""Dropout with counter-based random numbers (see philox.py): backward is the same call on the gradient."""
