"""Embedding: rows gathered by id; gradients summed by row, one writer a row, only rows that occurred."""
