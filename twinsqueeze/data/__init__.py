"""Sentence pairs, the frozen encoder and its vectors."""
