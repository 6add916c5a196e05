"""Adapting a CLIP with few labels."""
