"""Texts as strings: words, edits within a budget, distances, neighbours of words, sanitisation."""
