"""Whole runs on the miniature world: the backbone and the quickstart."""
