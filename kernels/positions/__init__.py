"""Positions: a row added to each token (learned or sinusoidal), or q and k rotated by their position (RoPE)."""
