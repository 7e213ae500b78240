"""Step Functions for the local platform: moto's application with its interpreter of state machines.

Run as a script, as s3_process.py is: descriptor 3 is the listening socket, descriptor 4 gets one byte
when it serves. MOTO_PORT is the port of the Lambda API that its tasks call.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

LISTENER_FD = 3
READY_FD = 4


def main() -> None:
    """Serve for ever."""
    from moto.core.config import default_user_config
    from moto.moto_server.werkzeug_app import create_backend_app

    default_user_config["stepfunctions"] = {"execute_state_machine": True}
    importlib.import_module("moto.stepfunctions.parser.models")  # takes seconds
    app = create_backend_app("stepfunctions")
    listener = socket.socket(fileno=LISTENER_FD)
    server = sibling("server").Server(listener, sibling("wsgi").answering(app))
    os.write(READY_FD, b"1")
    os.close(READY_FD)
    server.wait()


def sibling(name: str) -> Any:
    """A module of this folder, see s3_process.py."""
    if "local" not in sys.modules:
        package = sys.modules["local"] = ModuleType("local")
        package.__path__ = [str(Path(__file__).parent)]
    return importlib.import_module(f"local.{name}")


if __name__ == "__main__":
    main()
