"""Output head and softmax cross-entropy, chunked over tokens so that the logits of all tokens never exist at once."""
