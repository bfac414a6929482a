"""`npnet-train`: a dataset of noise pairs -> a checkpoint (arXiv 2411.09502, section 3.3)."""
