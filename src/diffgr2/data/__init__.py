"""Interactions in, histories out: importers, the split, the simulated shop, the download."""
