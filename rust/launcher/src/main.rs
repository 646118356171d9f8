//! Entry of the launcher executable; see the library.

use lamella_launcher::{init, launch};

fn main() {
    std::process::exit(if init::is_meant() { init::run() } else { launch::run() });
}
