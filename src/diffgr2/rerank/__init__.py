"""Re-ranking a list with a bundle: Reranker, tasks, names, unknown items, the format."""
