//! Reading and writing `.frit` files.
