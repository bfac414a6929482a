"""A small text-to-image world whose prompts a program can check exactly: scenes of coloured shapes."""
