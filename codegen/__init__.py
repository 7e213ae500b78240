"""Code generation: a plan and a captured program become ONNX slices and handlers."""
