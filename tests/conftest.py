"""Settings of the whole test process."""

import torch

# Two test processes share two cores; more threads would only make them wait for one another.
torch.set_num_threads(1)
