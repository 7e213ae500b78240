"""What ships in every function. Imports: standard library, numpy, onnxruntime, boto3, pybase64."""
