"""Fine-tuning of language models whose weights are packed integers that stay as they are."""
