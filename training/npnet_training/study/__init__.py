"""What golden noise is worth in the shapes world: `python -m npnet_training.study`."""
