"""For all tests, set before torch is imported: one thread each.

The models are too small to share among threads, and pytest-xdist runs a process per core.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
