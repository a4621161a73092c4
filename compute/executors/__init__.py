"""What runs a program on a device: one module per runtime, one contract for all."""
