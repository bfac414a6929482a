"""The text affine: all of a prompt's embeddings to one scale and one shift per channel."""
