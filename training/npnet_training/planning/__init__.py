"""What a run would cost on a GPU that is not here: counted on tensors without memory, and only estimated."""
