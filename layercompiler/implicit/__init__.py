"""Implicit functions: roots, fixed points, minimisers and unrolled algorithms as layers, whoever solves them."""
