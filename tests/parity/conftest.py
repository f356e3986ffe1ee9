"""Small models on one thread: many threads take turns at work too small to share, and cost ten times the time."""

import torch

torch.set_num_threads(1)
