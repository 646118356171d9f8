//! Finding the program and, when that or starting it fails, saying why in Docker's words, with a shell's exit status.

use std::ffi::{CStr, CString};
use std::io;

use rustix::fs::{Access, AtFlags, CWD, FileType};
use rustix::io::Errno;

use crate::error::{Failure, Kind, describe};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Find the program that a name stands for, by PATH of the container's environment when it has no slash.
///
/// Elements of PATH that are not absolute are passed over: they would run what lies in the working folder.
pub fn resolve(name: &CString, environment: &[CString]) -> Result<CString, Failure> {
    let shown = name.to_string_lossy();
    if name.to_bytes().contains(&b'/') {
        return match check(name) {
            Ok(()) => Ok(name.clone()),
            Err(Errno::NOENT | Errno::NOTDIR) => {
                Err(not_found(format!("exec: {shown:?}: stat {shown}: no such file or directory")))
            }
            Err(error) => Err(not_executable(format!("exec: {shown:?}: {}", describe(&error.into())))),
        };
    }
    let path = environment
        .iter()
        .rev()
        .find_map(|variable| variable.to_bytes().strip_prefix(b"PATH="))
        .unwrap_or(DEFAULT_PATH.as_bytes());
    let mut refused = None;
    for folder in path.split(|byte| *byte == b':').filter(|folder| folder.first() == Some(&b'/')) {
        let Ok(candidate) = CString::new([folder, b"/", name.to_bytes()].concat()) else { continue };
        match check(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::ACCESS | Errno::PERM) => refused = Some(candidate),
            Err(_) => {}
        }
    }
    match refused {
        Some(candidate) => Err(not_executable(format!("exec: {:?}: permission denied", candidate.to_string_lossy()))),
        None => Err(not_found(format!("exec: {shown:?}: executable file not found in $PATH"))),
    }
}

/// Whether a file may be run, as far as its mode says.
fn check(program: &CStr) -> Result<(), Errno> {
    let status = match rustix::fs::stat(program) {
        // A filter that forbids stat must not keep a program from being run: exec itself will tell.
        Err(Errno::NOSYS) => return Ok(()),
        status => status?,
    };
    if FileType::from_raw_mode(status.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    match rustix::fs::accessat(CWD, program, Access::EXEC_OK, AtFlags::EACCESS) {
        Err(Errno::NOSYS) => Ok(()),
        result => result,
    }
}

/// Why exec failed for a program that was found.
pub fn failure(program: &CStr, error: &io::Error) -> Failure {
    let shown = program.to_string_lossy();
    match error.raw_os_error() {
        Some(libc::ENOENT) => not_found(format!("exec {shown}: no such file or directory"))
            .with_hint("the file is there: its interpreter (#! line) or its dynamic loader is missing from the image"),
        Some(libc::ENOEXEC) => not_executable(format!("exec {shown}: exec format error"))
            .with_hint("a script needs a #! line, a binary must be built for this machine's architecture"),
        _ => not_executable(format!("exec {shown}: {}", describe(error))),
    }
}

fn not_found(message: String) -> Failure {
    Failure { exit_code: Some(127), ..Failure::new(Kind::CommandNotFound, message) }
        .with_hint("check the command, and that the image has it")
}

fn not_executable(message: String) -> Failure {
    Failure { exit_code: Some(126), ..Failure::new(Kind::CommandNotExecutable, message) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn c(text: &str) -> CString {
        CString::new(text).expect("no NUL byte")
    }

    #[test]
    fn a_name_is_looked_up_in_the_containers_path_and_a_path_is_taken_as_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("tool");
        std::fs::write(&program, "#!/bin/sh\n").expect("written");
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("executable");
        let path = program.to_string_lossy().into_owned();
        let environment = [c(&format!("PATH=.:/nonexistent:{}", folder.path().display()))];
        assert_eq!(resolve(&c("tool"), &environment).expect("found"), c(&path));
        assert_eq!(resolve(&c(&path), &[]).expect("found"), c(&path));
        let failure = resolve(&c("toll"), &environment).expect_err("absent");
        assert_eq!((failure.kind, failure.exit_code), (Kind::CommandNotFound, Some(127)));
        assert!(failure.message.contains("executable file not found in $PATH"));
    }

    #[test]
    fn what_is_there_but_cannot_be_run_gives_126() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("text");
        std::fs::write(&program, "text").expect("written");
        for name in [program.to_string_lossy().into_owned(), folder.path().to_string_lossy().into_owned()] {
            let failure = resolve(&c(&name), &[]).expect_err("refused");
            assert_eq!((failure.kind, failure.exit_code), (Kind::CommandNotExecutable, Some(126)));
        }
        let failure = failure(c"/x", &io::Error::from_raw_os_error(libc::ENOEXEC));
        assert!(failure.message.ends_with("exec format error"));
    }
}
