"""A whole encoder in one call: tokens of any number of sequences through all layers, each seeing its own sequence.

spec.py: what an encoder is made of.
"""
