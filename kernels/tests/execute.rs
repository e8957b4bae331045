//! Rendered kernels against naive loops in f64.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;
