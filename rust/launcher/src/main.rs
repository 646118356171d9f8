//! Entry of the launcher executable; see the library.

fn main() {
    std::process::exit(lamella_launcher::launch::run());
}
