"""Text -> token sequences: sources, tokenizer, packing, domains, micro-batches. Knows no model."""
