"""`npnet-generate`: images with plain and golden noise from the same seeds, side by side."""
