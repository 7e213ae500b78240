"""Step Functions for the local platform: moto's application with its interpreter of state machines.

Run as a script, as s3_process.py is: descriptor 3 is the listening socket, descriptor 4 gets one byte
when it serves. MOTO_PORT is the port of the Lambda API that its tasks call.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import time
import uuid
from pathlib import Path
from types import ModuleType
from typing import Any

LISTENER_FD = 3
READY_FD = 4
SYNC = "AWSStepFunctions.StartSyncExecution"
LOOK_S = 0.005


def with_sync_executions(application: Any, backend_of: Any) -> Any:
    """The application, answering StartSyncExecution, which moto lacks: an execution of an Express state
    machine is started as any other, and its end awaited.
    """
    identity = sibling("identity")

    def answer(environ: Any, start_response: Any) -> Any:
        if environ.get("HTTP_X_AMZ_TARGET") != SYNC:
            return application(environ, start_response)
        wanted = json.loads(environ["wsgi.input"].read())
        backend = backend_of(identity.ACCOUNT, identity.REGION)
        machine = backend.describe_state_machine(wanted["stateMachineArn"])
        headers = [("Content-Type", "application/x-amz-json-1.0")]
        if machine.type != "EXPRESS":
            start_response("400 Bad Request", headers)
            return [json.dumps({"__type": "StateMachineTypeNotSupported"}).encode()]
        name = wanted.get("name") or str(uuid.uuid4())
        execution = backend.start_execution(machine.arn, name, wanted.get("input", "{}"))
        while execution.status == "RUNNING":
            time.sleep(LOOK_S)
        told = {
            "executionArn": execution.exec_arn,
            "status": execution.status,
            "startDate": execution.start_date.timestamp(),
            "stopDate": execution.stop_date.timestamp(),
            "error": execution.error,
            "cause": execution.cause,
        }
        if execution.status == "SUCCEEDED":
            told["output"] = json.dumps(execution.output)
        body = json.dumps({key: value for key, value in told.items() if value is not None})
        start_response("200 OK", headers)
        return [body.encode()]

    return answer


def main() -> None:
    """Serve for ever."""
    from moto.core.config import default_user_config
    from moto.moto_server.werkzeug_app import create_backend_app

    default_user_config["stepfunctions"] = {"execute_state_machine": True}
    importlib.import_module("moto.stepfunctions.parser.models")  # takes seconds
    responses = importlib.import_module("moto.stepfunctions.responses")
    app = with_sync_executions(create_backend_app("stepfunctions"), responses.get_backend)
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
