"""From messages to token ids, exactly as the model's own tokenizer does it, without torch."""
