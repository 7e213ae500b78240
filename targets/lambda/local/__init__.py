"""Lambda and S3 on this machine: the real protocols, the real limits."""

from .cgroup import Enforcement
from .network import Network
from .platform import Platform
from .reports import Report

__all__ = ["Enforcement", "Network", "Platform", "Report"]
