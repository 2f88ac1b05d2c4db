"""Nonlinear problems written in the CVXPY DSL: expression trees to graphs, objectives to residual blocks."""
