"""Model folders in and out: safetensors, config.json, tokenizer.json; and the names that other libraries use."""
