//! The container's parent process: the launcher sets a container up from an OCI runtime-spec bundle and stays as its
//! monitor.
//!
//! ```text
//! caller ──posix_spawn──> launcher ──fork──> monitor ──clone3──> first process ──execve──> program
//!   │ request on fd 3        └ ends            │  <──channel──     namespaces, mounts, cgroup, identity, filter
//!   └ reply from fd 4 <────────────────────────┘
//! ```
//! The request and the spec are checked whole before anything is made ([`request`], [`spec`]); what the launcher does
//! not implement is refused by name. Then [`launch`] makes the [`cgroup`] and the first process, which builds its
//! [`rootfs`] and applies its [`process`] plan in [`container`], and [`monitor`] serves until the container is gone. Where
//! an [`init`] was asked for, the same executable is that, too. Where another OCI [`runtime`] was asked for, that makes the
//! container in the place of all this, and the monitor is the same.
//!
//! In yet another role it is the [`helper`] that works on layers for a user who is not root.
//!
//! Everything that is not kept in files of the bundle dies with the processes: mounts exist in the container's mount
//! namespace only, and the cgroup's folders are removed by the monitor.

pub mod cgroup;
pub mod channel;
pub mod container;
pub mod enter;
pub mod error;
pub mod helper;
pub mod hooks;
pub mod init;
pub mod launch;
pub mod monitor;
pub mod namespaces;
pub mod network;
pub mod oci;
pub mod process;
pub mod request;
pub mod rootfs;
pub mod run;
pub mod runtime;
pub mod spec;
mod sys;
pub mod time;

pub use process::seccomp::{DEFAULT_SECCOMP, default_seccomp};

/// Write a program for a test that runs it, by a process of its own: what other tests fork meanwhile would have the file open for
/// writing until it executes something itself, and execve(2) refuses such a program (ETXTBSY).
#[cfg(test)]
fn write_program(path: &std::path::Path, text: &str) {
    use std::io::Write;
    use std::process::{Command, Stdio};

    let mut writer = Command::new("/bin/sh")
        .args(["-c", r#"cat > "$0" && chmod 755 "$0""#])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("started");
    writer.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("written");
    assert!(writer.wait().expect("ended").success());
}
