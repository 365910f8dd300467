"""From files to batches: sources, formats, templates with label masks, and the built-in world."""
