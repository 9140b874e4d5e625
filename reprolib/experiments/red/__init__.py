"""RED's experiments: the figures and tables of its paper, and beyond."""
