"""Indices over pictures and video moments."""
