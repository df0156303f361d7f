"""A whole decoder in one call: tokens of any number of sequences through all layers, over paged keys and values.

spec.py: what a decoder is made of; pages.py: where keys and values lie.
"""
