//! Pure scheduling decisions: requirements, resources, topology, and the solver.
