"""The engine's forward pass on a CPU: packed weights, kernels, decoding. Knows selections, not what chose them."""
