"""Products of rows with what stands around them: gather and norm before, activation and sum behind."""
