"""Golden noise in other people's programs. Nothing here is imported by `import npnet_runtime`."""
