"""Text vectors, quantizers and semantic IDs of the catalogue."""
