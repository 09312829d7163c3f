"""A question put to a model: prompts, and a number to explain."""
