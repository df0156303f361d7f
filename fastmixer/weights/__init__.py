"""Model files in and out: GGUF files, folders of safetensors with config.json and tokenizer.json, models of the hub; and the
names that other libraries use. Knows nothing of what is computed with them."""
