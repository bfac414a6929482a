"""What a caller may pass: checks, prompts of any length, noise of any size. No weights, no engines."""
