"""Adapters that let other libraries rank with a bundle; each imports its library on use only."""
