//! Entry of the launcher executable.

fn main() {}
