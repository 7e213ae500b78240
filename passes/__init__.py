"""Passes: OpGraph in, OpGraph or Plan out. One file a pass."""
