//! Positive cases in several spellings, each evaluated before and after, and near misses that must not match.

mod activation;
mod attention;
mod exports;
mod kit;
mod lint;
mod norm;
mod rope;
mod softmax;
