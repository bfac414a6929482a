"""The networks, top to bottom: sizes, modules, the graphs an engine holds. No files, devices or policies."""
