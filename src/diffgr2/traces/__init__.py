"""Teacher traces: what the re-ranker learns to write."""
