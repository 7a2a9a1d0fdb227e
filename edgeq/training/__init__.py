"""Training on the grids of a plan, where rounding alone loses too much."""
