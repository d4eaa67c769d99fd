"""The engines of edge nodes on one machine: each a context manager that ends all it started, also when it is killed."""
