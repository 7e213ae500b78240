"""What ships inside every function; imports the standard library, numpy, onnxruntime, boto3."""
