"""One thread for the computing: the models are tiny, and cores are shared with other tests."""

import torch

torch.set_num_threads(1)
