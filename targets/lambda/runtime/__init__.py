"""What ships in every function. Imports: standard library, numpy, onnxruntime, boto3, pybase64."""

import time

STARTED = time.perf_counter()  # before anything of the runtime is imported; see start.py
