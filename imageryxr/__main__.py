"""``python -m imageryxr``: the command line."""

from __future__ import annotations

from imageryxr.cli.main import main

if __name__ == "__main__":
    main()
