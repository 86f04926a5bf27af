"""A step on a CUDA device: attention over pages in Triton, decoding in CUDA graphs."""
