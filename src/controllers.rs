//! The reconcilers, and the table of all of them.
