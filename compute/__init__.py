"""What is done: programs, devices, executors and the worker that runs them.

The daemon imports only the light half of this package (manifests, tensors,
devices, the supervisor); onnx and onnxruntime live in the worker's process.
"""
