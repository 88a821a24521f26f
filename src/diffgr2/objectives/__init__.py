"""Objectives: noise, losses and rewards as pure functions; `stages` puts them together."""
