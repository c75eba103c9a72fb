"""Pure image operations: [B, C, H, W] in, the same shape out."""
