"""Whole runs on the miniature world, for people to start and to read."""
