"""A block as groups of operators that run slice by slice."""
