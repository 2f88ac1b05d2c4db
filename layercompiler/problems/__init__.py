"""What people write, turned into programs. The only room that knows CVXPY."""
