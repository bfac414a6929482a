"""Golden noise in other people's programs. `import npnet_runtime` imports nothing of it."""
