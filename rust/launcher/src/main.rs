//! Entry of the launcher executable; see the library.

use lamella_launcher::{helper, init, launch, oci};

fn main() {
    std::process::exit(if init::is_called(init::NAME) {
        init::run()
    } else if init::is_called(oci::NAME) {
        oci::run()
    } else if init::is_called(lamella_core::helper::NAME) {
        helper::run()
    } else {
        launch::run()
    });
}
