"""Two linear maps with a bend between them, plain or gated, and all their gradients."""
