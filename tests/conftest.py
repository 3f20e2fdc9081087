"""One thread a test: two threads that wait for each other on busy cores are many times slower than one."""

import torch

torch.set_num_threads(1)
