"""Readers of real pairs, decoding, and the loader."""
