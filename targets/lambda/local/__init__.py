"""Lambda and S3 on this machine: the real protocols, the real limits."""
