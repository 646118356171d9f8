//! Entry of the launcher executable; see the library.

use lamella_launcher::{init, launch, oci};

fn main() {
    std::process::exit(if init::is_meant() {
        init::run()
    } else if oci::is_meant() {
        oci::run()
    } else {
        launch::run()
    });
}
