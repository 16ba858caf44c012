"""Products with packed weights: `reference` (torch, any device, the oracle) and `cpu` (C, compiled on first use)."""
