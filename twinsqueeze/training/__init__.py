"""The trainer: batched training of one or many recipes."""
