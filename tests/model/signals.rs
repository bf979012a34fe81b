//! What a cluster shows of itself, and how it is written to.

mod writes;
