"""The same forward pass in plain torch, by the formulas as they are written: what the kernels are tested against."""
