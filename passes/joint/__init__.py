"""The joint pass: cut, transports and memory sizes for latency or cost; see `optimise`."""
