"""Drawing the next token from logits: repetition penalty, temperature, top-k, top-p, min-p, or the best one."""
