"""S3 for the local platform: moto's S3 application, in a process of its own.

Run as a script: argv[1:] are the buckets to create. Descriptor 3 is the listening socket, so that
clients may connect before moto has loaded; descriptor 4 gets one byte when it has.
"""

from __future__ import annotations

import os
import socket
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

ACCOUNT = "123456789012"
LISTENER_FD = 3
READY_FD = 4


def with_sessions(application: Any) -> Any:
    """The application, answering CreateSession, which clients of directory buckets call and moto lacks.

    The credentials are as good as any: moto does not check signatures.
    """

    def answer(environ: Any, start_response: Any) -> Any:
        bucket, _, key = environ["PATH_INFO"].lstrip("/").partition("/")
        is_session = environ["QUERY_STRING"] in ("session", "session=")
        if not (is_session and bucket.endswith("--x-s3") and not key):
            return application(environ, start_response)
        expiration = datetime.now(UTC) + timedelta(minutes=5)  # as on AWS
        body = (
            "<CreateSessionResult><Credentials><AccessKeyId>LOCAL</AccessKeyId>"
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
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        disable_nagle_algorithm = True

        def log_request(self, *_arguments: object) -> None:
            """Nothing: a line per request costs more than it tells."""

    for bucket in sys.argv[1:]:
        s3_backends[ACCOUNT]["aws"].create_bucket(bucket, "us-east-1")
    listener = socket.socket(fileno=LISTENER_FD)
    host, port = listener.getsockname()
    server = make_server(
        host,
        port,
        with_sessions(create_backend_app("s3")),
        threaded=True,
        request_handler=Handler,
        fd=LISTENER_FD,
    )
    os.write(READY_FD, b"1")
    os.close(READY_FD)
    server.serve_forever()


if __name__ == "__main__":
    main()
