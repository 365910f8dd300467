"""Pure tensor functions; each clever one stands beside its naive twin."""
