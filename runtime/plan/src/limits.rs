//! Limits checked before anything is allocated.
