"""Experiments over several runs: many seeds, several steps, and the results that are kept."""
