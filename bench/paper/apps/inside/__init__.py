"""What runs inside the applications: copied into layers as it is, for a Python with the minimal library only."""
