"""A table and its pictures each, for any nn.Module. `timm_multimix.evaluate` has the functions."""
