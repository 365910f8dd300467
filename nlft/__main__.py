"""`python -m nlft`."""

from __future__ import annotations

from nlft.cli import main

if __name__ == "__main__":
    main()
