"""The backbone: loading and saving, block layout and masks, the fast forward with its KV cache."""
