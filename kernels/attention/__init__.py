"""Attention: softmax(scale q k^T) v over spans of queries and keys, never holding more than a tile of the weights."""
