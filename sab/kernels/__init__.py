"""Products with packed weights: `reference` (torch, any device, the oracle), `cpu` (C, compiled on first use) and `gpu`
(Triton, on CUDA devices)."""
