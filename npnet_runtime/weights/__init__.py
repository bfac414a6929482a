"""Where weights come from and how they are read: by name, hub, package, checkpoint. No engines."""
