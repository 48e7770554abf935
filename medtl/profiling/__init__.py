"""Traces of training steps, and the operations in which their time goes."""
