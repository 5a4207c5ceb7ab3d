"""What a GPU is asked when one is at hand: are the CUDA runner's answers right, and how near the limit is it."""
