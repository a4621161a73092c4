"""ONNX as a torch graph: what the executor ``torch`` runs, on whatever device torch has.

Part of *execute*. ``reading`` takes a model apart, ``graph`` places its constants and runs
it, and one module per family of operators says what each of them is in torch (`OPERATORS`).
Nothing here knows of workers or of the network.
"""
