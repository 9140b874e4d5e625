"""What things cost, as ratios within one process: curvature, steps, training."""
