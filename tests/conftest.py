import torch

torch.set_num_threads(1)  # spinning OpenMP threads make tiny models many times slower on busy cores
