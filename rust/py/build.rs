//! Builds the launcher, which the extension module carries in itself.
//!
//! A cargo of its own with a target folder of its own: the outer build holds the lock of the usual one. The launcher
//! has its own profile, and is linked statically so that it runs from memory whatever libraries a machine has.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let rust = manifest.parent().expect("the crate lies in rust/").to_owned();
    let root = rust.parent().expect("rust/ lies in the workspace").to_owned();
    // Relative to this crate: clones that share a target folder share what cargo remembers of this, and each is to look at its own.
    for path in ["../core/src", "../core/Cargo.toml", "../launcher/src", "../launcher/Cargo.toml"] {
        println!("cargo::rerun-if-changed={path}");
    }
    println!("cargo::rerun-if-changed=../../Cargo.toml");
    println!("cargo::rerun-if-changed=../../Cargo.lock");
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it")).join("launcher");
    let target = env::var("TARGET").expect("cargo sets it");
    let built = build(&root, &out, &target, true).or_else(|error| {
        println!("cargo::warning=the launcher could not be linked statically, so it is linked dynamically: {error}");
        build(&root, &out, &target, false)
    });
    match built {
        Ok(path) => println!("cargo::rustc-env=LAMELLA_LAUNCHER={}", path.display()),
        Err(error) => panic!("the launcher could not be built: {error}"),
    }
}

fn build(root: &Path, out: &Path, target: &str, fixed: bool) -> Result<PathBuf, String> {
    let mut command = Command::new(env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    command
        .current_dir(root)
        .args([
            "build",
            "--package",
            "lamella-launcher",
            "--bin",
            "lamella-launcher",
            "--profile",
            "launcher",
            "--locked",
        ])
        .arg("--target")
        .arg(target)
        .arg("--target-dir")
        .arg(out)
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        // The outer build's own, such as those that maturin gives the extension module.
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    if fixed && target.contains("linux") {
        command.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    }
    for (name, _) in env::vars_os() {
        // Features and metadata of this crate say nothing about the launcher.
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CARGO_FEATURE_")
            || name.starts_with("CARGO_CFG_")
            || name.starts_with("CARGO_PKG_")
            || name.starts_with("DEP_")
        {
            command.env_remove(name);
        }
    }
    let output = command.output().map_err(|error| format!("cargo: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let path = out.join(target).join("launcher").join("lamella-launcher");
    if path.is_file() { Ok(path) } else { Err(format!("{} was not made", path.display())) }
}
