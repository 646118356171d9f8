//! Entry of the launcher executable; see the library.

use lamella_launcher::{init, launch, oci};

fn main() {
    std::process::exit(if init::is_called(init::NAME) {
        init::run()
    } else if init::is_called(oci::NAME) {
        oci::run()
    } else {
        launch::run()
    });
}
