"""Loads libraries of operators, in order, as a Python user does: python loads_in_python.py LIBRARY..."""

import sys

import torch

for library in sys.argv[1:]:
    torch.ops.load_library(library)
