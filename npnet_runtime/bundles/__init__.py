"""The folder an engine is kept in, its manifest and its checked files. Nothing here runs an engine."""
