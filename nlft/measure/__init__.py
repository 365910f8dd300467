"""Scoring rows, and what the scores say about learning and forgetting."""
