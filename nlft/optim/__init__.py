"""Optimisers: several clocks in one, and those of Nested Learning."""
