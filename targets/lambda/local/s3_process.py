"""S3 for the local platform: moto's S3 application, in a process of its own.

Run as a script: argv[1] is a JSON file with the network to emulate and the roles whose permissions
count, each may be null, and whether faults are injected; argv[2:] are the buckets to create.
Descriptor 3 is the listening socket, so that clients may connect before moto has loaded; descriptor 4
gets one byte when it has.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

LISTENER_FD = 3
READY_FD = 4


def with_sessions(application: Any) -> Any:
    """The application, answering CreateSession, which clients of directory buckets call and moto lacks.

    The key id is the caller's own, so that the session still says whose it is; moto does not check
    signatures.
    """
    identity = sibling("identity")

    def answer(environ: Any, start_response: Any) -> Any:
        bucket, _, key = environ["PATH_INFO"].lstrip("/").partition("/")
        is_session = environ["QUERY_STRING"] in ("session", "session=")
        if not (is_session and bucket.endswith("--x-s3") and not key):
            return application(environ, start_response)
        expiration = datetime.now(UTC) + timedelta(minutes=5)  # as on AWS
        key_id = identity.access_key_id_of(environ.get("HTTP_AUTHORIZATION")) or "LOCAL"
        body = (
            f"<CreateSessionResult><Credentials><AccessKeyId>{key_id}</AccessKeyId>"
            "<SecretAccessKey>local</SecretAccessKey><SessionToken>local</SessionToken>"
            f"<Expiration>{expiration:%Y-%m-%dT%H:%M:%SZ}</Expiration>"
            "</Credentials></CreateSessionResult>"
        ).encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        start_response("200 OK", headers)
        return [body]

    return answer


def main() -> None:
    """Create the buckets, then serve for ever."""
    from moto.moto_server.werkzeug_app import create_backend_app
    from moto.s3.models import s3_backends

    settings = json.loads(Path(sys.argv[1]).read_text())
    account = sibling("identity").ACCOUNT
    for bucket in sys.argv[2:]:
        s3_backends[account]["aws"].create_bucket(bucket, "us-east-1")
    app = with_sessions(create_backend_app("s3"))
    if settings["roles"] is not None:
        permissions = sibling("permissions")
        app = permissions.guarded(app, permissions.roles_from_json(settings["roles"]))
    if settings["faults"]:
        app = sibling("faults").faulty(app)
    if settings["network"]:
        network = sibling("network").network_from_json(settings["network"])
        traffic = sibling("network").Traffic(network)
        app = sibling("s3_network").delayed(app, traffic)
    listener = socket.socket(fileno=LISTENER_FD)
    server = sibling("server").Server(listener, sibling("wsgi").answering(app))
    os.write(READY_FD, b"1")
    os.close(READY_FD)
    server.wait()


def sibling(name: str) -> Any:
    """A module of this folder, which imports the standard library and its siblings only.

    slicewise itself may not be importable in this process, and takes longer to load.
    """
    if "local" not in sys.modules:
        package = sys.modules["local"] = ModuleType("local")
        package.__path__ = [str(Path(__file__).parent)]
    return importlib.import_module(f"local.{name}")


if __name__ == "__main__":
    main()
