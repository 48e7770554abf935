"""Traces of training steps, and the operations that take their time."""
