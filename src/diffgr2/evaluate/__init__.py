"""Measuring saved outputs: metrics, significance, validity, reports, plots. Knows no stage."""
