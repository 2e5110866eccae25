"""``python -m ssdlite_d2`` is the program ``ssdlite``."""

from .tools.cli import main

if __name__ == "__main__":
    main()
