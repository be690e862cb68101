"""One thread: the tensors are tiny, threads would only wait for each other."""

import torch

torch.set_num_threads(1)
