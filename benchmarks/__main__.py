"""Measure the speed of what only training uses; run in a checkout.

python -m benchmarks data
python -m benchmarks train
"""

from ssdlite_d2.tools.benchmark.__main__ import main

from . import data, train

main("python -m benchmarks", {"data": data, "train": train})
