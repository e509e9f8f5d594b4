"""One cross-cutting concern per file, each a Lightning callback."""
