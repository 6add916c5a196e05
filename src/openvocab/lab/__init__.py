"""Experiments, tables and the report."""
