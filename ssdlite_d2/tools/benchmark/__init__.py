"""Speed, measured by turns in one run: ``python -m ssdlite_d2.tools.benchmark --help``."""
